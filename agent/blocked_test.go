package agent

import (
	"testing"

	"github.com/weir-net/weir/overlay"
)

// TestBlocked: tunnel packets that are believed and don't arrive are a firewall's doing, unless the counters begin
// anew.
func TestBlocked(t *testing.T) {
	for _, tc := range []struct {
		before, now overlay.Traffic
		blocked     bool
	}{
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{Believed: 20, Arrived: 20}, false},
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{Believed: 20, Arrived: 10}, true},
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{Believed: 11, Arrived: 10}, false},
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{}, false},
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{Believed: 4, Arrived: 4}, false},
		{overlay.Traffic{Believed: 10, Arrived: 10}, overlay.Traffic{Believed: 4}, true},
	} {
		if got := blocked(NodeOptions{Name: "n1"}, tc.before, tc.now, nil); len(got) > 0 != tc.blocked {
			t.Errorf("%+v, then %+v: %v", tc.before, tc.now, got)
		}
	}
}
