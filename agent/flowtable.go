package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/weir-net/weir/agentapi"
)

const maxFlows = 8192

// flowTable keeps the last flows. Without room, the source with the most flows loses its oldest one, so no source
// pushes out flows of others.
type flowTable struct {
	most      int
	flows     map[flowKey]*agentapi.Flow
	by        map[string]map[flowKey]bool // the keys of each source
	forgotten uint64
}

type flowKey struct {
	source, destination, protocol string
	port                          uint16
}

func newFlowTable() *flowTable {
	return &flowTable{most: maxFlows, flows: map[flowKey]*agentapi.Flow{}, by: map[string]map[flowKey]bool{}}
}

func endKey(e agentapi.FlowEnd) string {
	return cmp.Or(e.Pod, e.Address.String())
}

func (t *flowTable) add(f agentapi.Flow) {
	key := flowKey{endKey(f.Source), endKey(f.Destination), f.Protocol, f.Port}
	if same := t.flows[key]; same != nil {
		same.Count += f.Count
		same.Last = f.Last
		// The agent may learn a pod's labels only later, and another pod of the same name may have others.
		for was, now := range map[*agentapi.FlowEnd]agentapi.FlowEnd{
			&same.Source: f.Source, &same.Destination: f.Destination,
		} {
			if now.Labels != nil {
				*was = now
			}
		}
		return
	}
	if len(t.flows) >= t.most {
		t.forget()
	}
	t.flows[key] = &f
	if t.by[key.source] == nil {
		t.by[key.source] = map[flowKey]bool{}
	}
	t.by[key.source][key] = true
}

func (t *flowTable) forget() {
	source, most := "", 0
	for s, keys := range t.by {
		if len(keys) > most || len(keys) == most && s < source {
			source, most = s, len(keys)
		}
	}
	var oldest flowKey
	var seen time.Time
	for k := range t.by[source] {
		if last := t.flows[k].Last; seen.IsZero() || last.Before(seen) {
			oldest, seen = k, last
		}
	}
	delete(t.flows, oldest)
	if delete(t.by[source], oldest); len(t.by[source]) == 0 {
		delete(t.by, source)
	}
	t.forgotten++
}

func (t *flowTable) since(from time.Time) []agentapi.Flow {
	all := []agentapi.Flow{}
	for _, f := range t.flows {
		if !f.Last.Before(from) {
			all = append(all, *f)
		}
	}
	slices.SortFunc(all, func(a, b agentapi.Flow) int {
		return cmp.Or(a.Last.Compare(b.Last), cmp.Compare(endKey(a.Source), endKey(b.Source)),
			cmp.Compare(endKey(a.Destination), endKey(b.Destination)), cmp.Compare(a.Port, b.Port))
	})
	return all
}
