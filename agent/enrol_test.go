package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/weir-net/weir/endpoint"
)

// TestAnswerLooksAgainAtTheFirstDeadline: if plugins wait, answer returns the time until the first deadline.
func TestAnswerLooksAgainAtTheFirstDeadline(t *testing.T) {
	for _, waits := range [][]time.Duration{
		{time.Minute, time.Hour},
		{time.Hour, time.Minute},
		{time.Hour, time.Minute, time.Hour},
	} {
		a := &agent{records: records{endpoints: map[string]endpoint.Endpoint{"c:eth0": {}}}}
		for _, wait := range waits {
			e := &enrolment{id: "c:eth0", deadline: time.Now().Add(wait), answer: make(chan answer, 1)}
			a.enrolments.waiting = append(a.enrolments.waiting, e)
		}
		if next := a.answer(errors.New("not yet")); next <= 0 || next > time.Minute {
			t.Errorf("with %v to wait, the next look is in %v", waits, next)
		}
	}
	if next := (&agent{}).answer(nil); next != 0 {
		t.Errorf("with no plugin waiting, the next look is in %v", next)
	}
}
