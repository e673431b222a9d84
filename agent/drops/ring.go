package drops

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// A Ring has at most this many entries, and about this many bytes.
const (
	ringEntries = 8192
	ringBytes   = 8 << 20
)

// Entry is a drop. Sender is the number of its sender's account (see Line.Sender).
type Entry struct {
	*agentapi.Drop
	Sender uint64
}

// Ring keeps the last drops. If there is no room, the sender with the most entries loses its oldest entry. Any
// goroutine may use Ring.
type Ring struct {
	mu      sync.Mutex
	senders map[uint64]*kept
	most    mostFirst
	entries int
	bytes   int
	number  uint64
}

type kept struct {
	sender  uint64
	entries []numbered
	place   int // the index in Ring.most
}

type numbered struct {
	drop   *agentapi.Drop
	number uint64 // the entry's number, in the order in which entries came
}

func NewRing() *Ring { return &Ring{senders: map[uint64]*kept{}} }

// Add adds the entries. If there is no room, it removes earlier entries (see Ring).
func (r *Ring) Add(entries []Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		of := r.senders[e.Sender]
		if of == nil {
			of = &kept{sender: e.Sender}
			r.senders[e.Sender] = of
			heap.Push(&r.most, of)
		}
		r.number++
		of.entries = append(of.entries, numbered{e.Drop, r.number})
		heap.Fix(&r.most, of.place)
		r.entries++
		r.bytes += size(e.Drop)
		for r.entries > ringEntries || r.bytes > ringBytes {
			r.dropOldest(r.most[0])
		}
	}
}

func (r *Ring) dropOldest(of *kept) {
	r.entries--
	r.bytes -= size(of.entries[0].drop)
	of.entries[0] = numbered{}
	if of.entries = of.entries[1:]; len(of.entries) > 0 {
		heap.Fix(&r.most, of.place)
		return
	}
	heap.Remove(&r.most, of.place)
	delete(r.senders, of.sender)
}

// size returns the drop's size in bytes, roughly. Drops share the texts of policies, so these texts don't count.
func size(d *agentapi.Drop) int {
	return 400 + len(d.Packet) + len(d.Source.Pod) + len(d.Destination.Pod) + 16*len(d.Policies)
}

// Since returns the drops from the time t on, in the order in which they were added.
func (r *Ring) Since(t time.Time) (drops []*agentapi.Drop) {
	r.mu.Lock()
	all := make([]numbered, 0, r.entries)
	for _, of := range r.senders {
		for _, e := range of.entries {
			if !e.drop.Time.Before(t) {
				all = append(all, e)
			}
		}
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b numbered) int { return int(int64(a.number) - int64(b.number)) })
	for _, e := range all {
		drops = append(drops, e.drop)
	}
	return drops
}

// mostFirst is a heap of senders. The first has the most entries.
type mostFirst []*kept

func (h mostFirst) Len() int           { return len(h) }
func (h mostFirst) Less(i, j int) bool { return len(h[i].entries) > len(h[j].entries) }

func (h mostFirst) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *mostFirst) Push(x any) {
	k := x.(*kept)
	k.place = len(*h)
	*h = append(*h, k)
}

func (h *mostFirst) Pop() any {
	last := len(*h) - 1
	k := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return k
}
