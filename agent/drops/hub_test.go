package drops

import (
	"context"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
)

func entries(n int, port uint16) (all []Entry) {
	for range n {
		d := &agentapi.Drop{Kind: agentapi.DropShown, Count: 2, Destination: agentapi.DropEnd{Port: port}}
		all = append(all, Entry{Drop: d})
	}
	return all
}

// TestHub: if a reader doesn't read, the hub doesn't wait for it. The reader learns how many packets it has missed.
func TestHub(t *testing.T) {
	h := NewHub()
	all, some := h.Subscribe(agentapi.DropsQuery{}), h.Subscribe(agentapi.DropsQuery{Port: 80})
	h.Publish(entries(1, 80))
	for range 10 {
		h.Publish(entries(queued/2, 443))
	}
	got := all.Next(t.Context(), time.Minute)
	var count uint64
	for _, d := range got {
		count += d.Count
	}
	if last := got[len(got)-1]; last.Kind != agentapi.DropMissed || len(got) != queued+1 || count != 2*(1+5*queued) {
		t.Errorf("%d drops of %d packets, the last: %+v", len(got), count, last)
	}
	if got := some.Next(t.Context(), time.Minute); len(got) != 1 {
		t.Errorf("%d drops to port 80", len(got))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := some.Next(ctx, time.Minute); len(got) != 0 {
		t.Errorf("%d drops after the end", len(got))
	}
	all.Close()
	for range maxReaders - 1 {
		if h.Subscribe(agentapi.DropsQuery{}) == nil {
			t.Fatal("no room for a reader")
		}
	}
	if h.Subscribe(agentapi.DropsQuery{}) != nil {
		t.Error("too many readers")
	}
}
