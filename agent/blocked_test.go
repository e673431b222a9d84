package agent

import (
	"testing"

	"github.com/weir-net/weir/overlay"
)

// TestBlocked: if the gate accepts several tunnel packets and none is delivered, a host firewall is reported.
func TestBlocked(t *testing.T) {
	for _, tc := range []struct {
		before, now overlay.Traffic
		blocked     bool
	}{
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{Accepted: 20, Delivered: 20}, false},
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{Accepted: 20, Delivered: 10}, true},
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{Accepted: 11, Delivered: 10}, false},
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{}, false},
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{Accepted: 4, Delivered: 4}, false},
		{overlay.Traffic{Accepted: 10, Delivered: 10}, overlay.Traffic{Accepted: 4}, true},
	} {
		if got := blocked(NodeOptions{Name: "n1"}, tc.before, tc.now, nil); len(got) > 0 != tc.blocked {
			t.Errorf("%+v, then %+v: %v", tc.before, tc.now, got)
		}
	}
}
