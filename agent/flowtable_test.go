package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// TestFlowTable: if a source has many flows, it pushes out only its own.
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
	delete(table.by["a"], flowKey{"a", "c", "tcp", 80})
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
