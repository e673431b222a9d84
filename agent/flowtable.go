package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/weir-net/weir/agentapi"
)

const (
	maxFlows  = 8192     // the room that all flows together may take
	labelRoom = 1024     // labels of this many bytes take as much room as a flow
	maxLabels = 32 << 10 // a pod's labels with more bytes are not kept
)

// flowTable keeps flows, and counts the room that each source (a pod or an address) takes. When the table is full, the
// source that takes the most room loses its least recent flow. So a source with many flows pushes out only its own
// flows.
type flowTable struct {
	most, room int
	flows      map[flowKey]*agentapi.Flow
	by         map[string]*flowsOf // the flows of each source
	forgotten  uint64
}

type flowsOf struct {
	keys map[flowKey]bool
	room int
}

type flowKey struct {
	source, destination, protocol string
	port                          uint16
}

func newFlowTable() *flowTable {
	return &flowTable{most: maxFlows, flows: map[flowKey]*agentapi.Flow{}, by: map[string]*flowsOf{}}
}

func endKey(e agentapi.FlowEnd) string {
	return cmp.Or(e.Pod, e.Address.String())
}

func (t *flowTable) add(f agentapi.Flow) {
	for _, end := range [...]*agentapi.FlowEnd{&f.Source, &f.Destination} {
		if sizeOf(end.Labels) > maxLabels {
			end.Labels = nil
		}
	}
	key := flowKey{endKey(f.Source), endKey(f.Destination), f.Protocol, f.Port}
	if same := t.flows[key]; same != nil {
		t.addRoom(key, -roomOf(same))
		same.Count += f.Count
		same.Last = f.Last
		// The agent may learn a pod's labels late, and a new pod of the same name may have other labels. So the newest
		// labels count.
		for was, now := range map[*agentapi.FlowEnd]agentapi.FlowEnd{
			&same.Source: f.Source, &same.Destination: f.Destination,
		} {
			if now.Labels != nil {
				*was = now
			}
		}
		t.addRoom(key, roomOf(same))
	} else {
		for len(t.flows) > 0 && t.room+roomOf(&f) > t.most {
			t.forget()
		}
		t.flows[key] = &f
		if t.by[key.source] == nil {
			t.by[key.source] = &flowsOf{keys: map[flowKey]bool{}}
		}
		t.by[key.source].keys[key] = true
		t.addRoom(key, roomOf(&f))
	}
	for len(t.flows) > 1 && t.room > t.most { // a known flow takes more room once its labels are known
		t.forget()
	}
}

func roomOf(f *agentapi.Flow) int {
	return 1 + (sizeOf(f.Source.Labels)+sizeOf(f.Destination.Labels))/labelRoom
}

func sizeOf(labels map[string]string) (bytes int) {
	for key, value := range labels {
		bytes += len(key) + len(value)
	}
	return bytes
}

// addRoom counts room as taken by the flow with this key. If room is negative, addRoom counts it as free again.
func (t *flowTable) addRoom(key flowKey, room int) {
	t.room += room
	t.by[key.source].room += room
}

func (t *flowTable) forget() {
	source, most := "", 0
	for s, of := range t.by {
		if of.room > most || of.room == most && s < source {
			source, most = s, of.room
		}
	}
	var oldest flowKey
	var seen time.Time
	for k := range t.by[source].keys {
		if last := t.flows[k].Last; seen.IsZero() || last.Before(seen) {
			oldest, seen = k, last
		}
	}
	t.addRoom(oldest, -roomOf(t.flows[oldest]))
	delete(t.flows, oldest)
	if delete(t.by[source].keys, oldest); len(t.by[source].keys) == 0 {
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
