package client

import (
	"container/heap"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// dropOrder sorts drops of several nodes by their times. Each drop waits as long as the window, so that older drops
// can still come. The wait is measured with this computer's clock, so a node's wrong clock makes no drop wait longer.
type dropOrder struct {
	window time.Duration
	drops  dropHeap
}

type waitingDrop struct {
	*agentapi.Drop
	due time.Time
}

func (o *dropOrder) add(d *agentapi.Drop, now time.Time) {
	heap.Push(&o.drops, waitingDrop{d, now.Add(o.window)})
}

// due removes and returns the drops that have waited long enough, and all drops that are older than these. next is the
// time after which due must be called again; 0 means that no drop waits.
func (o *dropOrder) due(now time.Time) (all []*agentapi.Drop, next time.Duration) {
	last := -1 // the newest drop that is due; the heap's slice is in no order
	for i, w := range o.drops {
		if !w.due.After(now) && (last < 0 || o.drops[last].Time.Before(w.Time)) {
			last = i
		}
	}
	if last >= 0 {
		for until := o.drops[last].Time; len(o.drops) > 0 && !o.drops[0].Time.After(until); {
			all = append(all, heap.Pop(&o.drops).(waitingDrop).Drop)
		}
	}
	for i, w := range o.drops {
		if wait := w.due.Sub(now); i == 0 || wait < next {
			next = wait
		}
	}
	return all, next
}

type dropHeap []waitingDrop

func (h dropHeap) Len() int           { return len(h) }
func (h dropHeap) Less(i, j int) bool { return h[i].Time.Before(h[j].Time) }
func (h dropHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dropHeap) Push(x any)        { *h = append(*h, x.(waitingDrop)) }

func (h *dropHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = waitingDrop{}
	*h = (*h)[:last]
	return x
}
