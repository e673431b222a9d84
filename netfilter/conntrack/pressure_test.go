package conntrack

import "testing"

// TestHeld: held returns true if any queue has a packet, or if a line can't be understood.
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

func TestEvicted(t *testing.T) {
	const names = "entries  clashres found insert_failed drop early_drop icmp_error\n"
	for _, tc := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{names + "00000001  00000000 00000000 00000000 00000002 0000000a 00000000\n" +
			"00000001  00000000 00000000 00000000 00000002 00000010 00000000\n", 26, true},
		{names, 0, true},
		{names + "00000001  00000000\n", 0, false},
		{names + "00000001  00000000 00000000 00000000 00000002 x 00000000\n", 0, false},
		{"entries found\n00000001 00000000\n", 0, false},
	} {
		if got, err := evicted(tc.text); got != tc.want || (err == nil) != tc.ok {
			t.Errorf("%q: %d, %v; want %d", tc.text, got, err, tc.want)
		}
	}
}

func TestReadLoad(t *testing.T) {
	l, err := ReadLoad()
	if err != nil || l.Most > 0 && l.Entries > l.Most { // 0 means no limit
		t.Errorf("%+v, %v", l, err)
	}
}
