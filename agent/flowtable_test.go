package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// TestFlowTable: if a source has many flows, it pushes out only its own flows.
func TestFlowTable(t *testing.T) {
	table := newFlowTable()
	table.most = 100
	at := time.Unix(1000, 0)
	flow := func(source, destination string) agentapi.Flow {
		at = at.Add(time.Second)
		return agentapi.Flow{
			Source: agentapi.FlowEnd{Pod: source}, Destination: agentapi.FlowEnd{Pod: destination}, Protocol: "tcp", Port: 80,
			Count: 1, First: at, Last: at,
		}
	}
	first := flow("a", "b")
	table.add(first)
	table.add(flow("a", "b"))
	for _, labels := range []map[string]string{nil, {"app": "a"}, nil} {
		f := flow("a", "c")
		f.Source.Labels = labels
		table.add(f)
	}
	if f := table.since(at)[0]; f.Source.Labels["app"] != "a" || f.Count != 3 {
		t.Errorf("labels that became known later are not there: %+v", f)
	}
	delete(table.flows, flowKey{"a", "c", "tcp", 80})
	delete(table.by["a"].keys, flowKey{"a", "c", "tcp", 80})
	table.addRoom(flowKey{source: "a"}, -1)
	for i := range 500 {
		table.add(flow("scan", fmt.Sprint(i)))
	}
	all := table.since(time.Time{})
	if len(all) != 100 || all[0].Source.Pod != "a" || all[0].Count != 2 || !all[0].First.Equal(first.First) ||
		all[99].Destination.Pod != "499" || table.forgotten != 401 {
		t.Errorf("%d flows, %d forgotten, the first: %+v", len(all), table.forgotten, all[0])
	}
	if some := table.since(at); len(some) != 1 {
		t.Errorf("%d flows since the last", len(some))
	}
}

// TestFlowTableBoundsLabels: if a source's labels are large, fewer of its flows are kept. All flows of sources with
// small labels are kept.
func TestFlowTableBoundsLabels(t *testing.T) {
	table := newFlowTable()
	table.most = 1000
	at := time.Unix(1000, 0)
	add := func(source string, port, labels int) {
		at = at.Add(time.Second)
		f := agentapi.Flow{
			Source: agentapi.FlowEnd{Pod: source}, Destination: agentapi.FlowEnd{Pod: "shop/db"}, Protocol: "tcp",
			Port: uint16(port), Count: 1, First: at, Last: at,
		}
		if labels > 0 {
			f.Source.Labels = map[string]string{"app": strings.Repeat("x", labels)}
		}
		table.add(f)
	}
	for port := range 10 {
		add("calm", port, 10)
	}
	for port := range 500 {
		add("large", port, maxLabels-10)
		add("late", port%50, 0)
		add("late", port%50, 10<<10)
		add("huge", port%20, 1<<20)
	}
	by, bytes, room := map[string]int{}, 0, 0
	for _, f := range table.since(time.Time{}) {
		by[f.Source.Pod]++
		bytes += sizeOf(f.Source.Labels)
		room += roomOf(&f)
	}
	if bytes > table.most*labelRoom || room > table.most || room != table.room {
		t.Errorf("%d bytes, room %d, counted as %d", bytes, room, table.room)
	}
	if by["calm"] != 10 || by["huge"] != 20 || by["large"] == 0 || by["late"] == 0 {
		t.Errorf("flows by source: %v", by)
	}
	for _, of := range table.by {
		room -= of.room
	}
	if room != 0 {
		t.Errorf("the sources' room differs from the table's by %d", room)
	}
}

// TestFlowsOfAFailedRecording: if a recording has failed and will be tried again, a new order to record keeps the flows
// of the failed recording. If a recording has ended, a new order begins with an empty table.
func TestFlowsOfAFailedRecording(t *testing.T) {
	l := newFlowLog()
	l.order(time.Hour)
	l.recording = true
	now := time.Now()
	l.table.add(agentapi.Flow{Protocol: "tcp", Port: 80, Count: 1, First: now, Last: now})
	l.ended(errors.New("no memory"))
	l.order(2 * time.Hour)
	if n := len(l.answer(0).Flows); n != 1 {
		t.Errorf("%d flows after the failure, want 1", n)
	}
	l.order(0)
	l.ended(nil)
	l.order(time.Hour)
	if n := len(l.answer(0).Flows); n != 0 {
		t.Errorf("%d flows in a new recording", n)
	}
}
