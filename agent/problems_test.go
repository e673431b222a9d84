package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-net/weir/policy/ruleset"
)

// TestManyProblemsAreReportedSeldom: if many problems change all the time, they are reported once a second.
func TestManyProblemsAreReportedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := func(n int) (all []ruleset.Problem) {
			for i := range n {
				all = append(all, ruleset.Problem{Object: fmt.Sprint("NetworkPolicy a/", i), Message: "no room"})
			}
			return all
		}
		var said bytes.Buffer
		log := slog.New(slog.NewTextHandler(&said, nil))
		time.Sleep(time.Hour)
		var p problems
		reports := 0
		for i := range 100 { // the calls are 50 ms apart
			before := len(p.all)
			wait := p.report(log, list(2*many+i), nil)
			if len(p.all) != before {
				reports++
			} else if wait <= 0 || wait > manyEvery {
				t.Errorf("call %d reports nothing, and is to be repeated in %v", i, wait)
			}
			time.Sleep(50 * time.Millisecond)
		}
		if reports < 4 || reports > 6 {
			t.Errorf("%d reports in 5 s", reports)
		}
		last := list(3 * many)
		time.Sleep(p.report(log, last, nil))
		if p.report(log, last, nil); len(p.all) != len(last) {
			t.Errorf("in the end %d of %d problems are reported", len(p.all), len(last))
		}
		if n := testing.AllocsPerRun(10, func() { p.report(log, last, nil) }); n > 0 {
			t.Errorf("the same problems take %.0f allocations", n)
		}
		others := []ruleset.Problem{{Object: "Node n", Field: "spec.podCIDRs", Message: "overlap"}}
		time.Sleep(manyEvery)
		if p.report(log, last, others); !strings.Contains(said.String(), "Node n") {
			t.Error("a problem of another object isn't reported")
		}
	})
}
