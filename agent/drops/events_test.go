package drops

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/weir-net/weir/agentapi"
)

func dropped(pod, peer string, port uint16) *agentapi.Drop {
	return &agentapi.Drop{
		Kind: agentapi.DropShown, Direction: "ingress", Reason: agentapi.ByPolicy, Protocol: "tcp", Count: 2,
		Policies:    []string{"shop/db"},
		Source:      agentapi.DropEnd{Pod: peer, Address: netip.MustParseAddr("10.0.0.1"), Port: 4000},
		Destination: agentapi.DropEnd{Pod: pod, Address: netip.MustParseAddr("10.0.0.2"), Port: port},
	}
}

// TestEvents: if many packets of one kind are dropped, there is one event at once and another five minutes later.
// Limits bound the events of one pod and the events of all pods.
func TestEvents(t *testing.T) {
	e, now := NewEvents(), time.Unix(1e9, 0)
	add := func(d *agentapi.Drop) (Notice, bool) {
		d.Time = now
		return e.Add(d, now)
	}
	n, ok := add(dropped("shop/db", "shop/batch", 5432))
	want := "dropped TCP from shop/batch (10.0.0.1) to shop/db (10.0.0.2:5432): isolated by shop/db"
	if !ok || n.Pod != "shop/db" || n.Count != 2 || n.Note != want {
		t.Errorf("%v, %+v", ok, n)
	}
	for range 9 {
		now = now.Add(30 * time.Second)
		if n, ok := add(dropped("shop/db", "shop/batch", 5432)); ok {
			t.Errorf("again: %+v", n)
		}
	}
	now = now.Add(30 * time.Second)
	if n, ok := add(dropped("shop/db", "shop/batch", 5432)); !ok || n.Count != 22 || !n.First.Before(n.Last) {
		t.Errorf("after five minutes: %v, %+v", ok, n)
	}
	for _, other := range []func(*agentapi.Drop){
		func(d *agentapi.Drop) { d.Kind = agentapi.DropMore }, func(d *agentapi.Drop) { d.Destination.Pod = "" },
		func(d *agentapi.Drop) { d.Reason = agentapi.ByAudit }, func(d *agentapi.Drop) { d.Destination.Pod = "a/b,c/d" },
	} {
		d := dropped("shop/db", "shop/other", 1)
		if other(d); true {
			if n, ok := add(d); ok {
				t.Errorf("%+v", n)
			}
		}
	}
	count := func(pod func(int) string) (events int) {
		for i := range 10_000 {
			if _, ok := add(dropped(pod(i), "shop/batch", uint16(i))); ok {
				events++
			}
		}
		return events
	}
	if k := count(func(int) string { return "shop/scanned" }); k != podBurst {
		t.Errorf("%d events of one pod", k)
	}
	if n, ok := add(dropped("lab/calm", "shop/batch", 5432)); !ok || n.Count != 2 {
		t.Errorf("after one pod's many kinds of drops, another pod's gets no event: %v, %+v", ok, n)
	}
	now = now.Add(time.Hour + time.Minute)
	if k := count(func(i int) string { return fmt.Sprint("shop/", i) }); k != allBurst {
		t.Errorf("%d events of all pods", k)
	}
	if len(e.noticed) > maxNoticed {
		t.Errorf("%d kinds", len(e.noticed))
	}
	now = now.Add(2 * time.Hour)
	for i := range podBurst {
		peer := strings.Repeat("x", i) + strings.Repeat("語", 2000)
		n, ok := add(dropped("shop/db", peer, 1))
		if !ok || len(n.Note) > maxNote || len(e.noticed) != i+1 || !utf8.ValidString(n.Note) {
			t.Errorf("%v, %d bytes, %d kinds: %q", ok, len(n.Note), len(e.noticed), n.Note[max(0, len(n.Note)-9):])
		}
	}
}
