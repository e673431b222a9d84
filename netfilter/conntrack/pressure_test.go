package conntrack

import "testing"

// TestHeld: packets in any queue count, and lines that can't be understood count as packets.
func TestHeld(t *testing.T) {
	for _, tc := range []struct {
		queues string
		want   bool
	}{
		{"", false},
		{"    7   1234     0 2  65531     0     0       12  1\n", false},
		{"    7   1234     0 2  65531     0     0       12  1\n    8   1235     3 2  65531     0     0        3  1\n", true},
		{"    7   1234\n", true},
		{"\n", false},
	} {
		if got := held([]byte(tc.queues)); got != tc.want {
			t.Errorf("%q: %v, want %v", tc.queues, got, tc.want)
		}
	}
}
