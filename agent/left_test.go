package agent

import (
	"testing"
	"time"

	"github.com/weir-net/weir/netfilter"
)

// TestLeftSetsAreRetried: if sets could not be destroyed, the next round comes soon. If the same sets are left again,
// the next round comes later.
func TestLeftSetsAreRetried(t *testing.T) {
	a := &agent{}
	for i, tc := range []struct {
		left []string
		next time.Duration
	}{
		{[]string{"x", "y"}, destroyLater},
		{[]string{"y"}, destroyLater},
		{[]string{"y"}, retry},
		{[]string{"y"}, retry},
		{[]string{"y", "z"}, destroyLater},
		{nil, 0},
		{[]string{"y"}, destroyLater},
	} {
		r := &round{agent: a, applied: applied{Result: netfilter.Result{Left: tc.left}}}
		if r.retryLeftSets(t.Context()); r.next != tc.next {
			t.Errorf("%d: with %q left the next round comes in %v, want %v", i, tc.left, r.next, tc.next)
		}
	}
}
