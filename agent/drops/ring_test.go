package drops

import (
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// TestRing: if a sender has too many entries, it loses its oldest entries, and other senders lose none.
func TestRing(t *testing.T) {
	r := NewRing()
	at := time.Unix(1000, 0)
	add := func(sender uint64, n int) {
		for i := range n {
			at = at.Add(time.Millisecond)
			r.Add([]Entry{{&agentapi.Drop{Kind: agentapi.DropShown, Count: uint64(i), Time: at}, sender}})
		}
	}
	add(1, 3)
	add(2, 3*ringEntries)
	add(3, 3)
	all := r.Since(time.Time{})
	if len(all) != ringEntries {
		t.Fatalf("%d entries", len(all))
	}
	for i, d := range all[:3] {
		if d.Count != uint64(i) {
			t.Errorf("%d: %+v", i, d)
		}
	}
	if last := all[len(all)-1]; last.Count != 2 || !last.Time.Equal(at) {
		t.Errorf("the last one: %+v", last)
	}
	if some := r.Since(at); len(some) != 1 {
		t.Errorf("%d entries since the last one", len(some))
	}
	large := &agentapi.Drop{Time: at, Packet: make([]byte, 1<<20)}
	for range 20 {
		r.Add([]Entry{{large, 4}})
	}
	if r.bytes > ringBytes || len(r.Since(time.Time{})) != r.entries {
		t.Errorf("%d bytes, %d entries", r.bytes, r.entries)
	}
}
