package agent

import (
	"context"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
)

const maxEventsWaiting = 64

// dropEvents turns dropped packets into Event objects of pods. While the queue is full, it leaves further events out.
type dropEvents struct {
	to     PodAnnouncer // nil if no events are made
	events *drops.Events
	queue  chan agentapi.PodEvent
}

func (a *agent) newDropEvents() *dropEvents {
	e := &dropEvents{events: drops.NewEvents(), queue: make(chan agentapi.PodEvent, maxEventsWaiting)}
	if to, ok := a.Source.(PodAnnouncer); ok && a.DropEvents {
		e.to = to
	}
	return e
}

func (e *dropEvents) report(entries []drops.Entry, s *snapshot) {
	if e.to == nil {
		return
	}
	for _, d := range entries {
		n, due := e.events.Add(d.Drop, time.Now())
		if !due {
			continue
		}
		for _, of := range s.endpoints {
			if of.Pod.String() != n.Pod {
				continue
			}
			select {
			case e.queue <- agentapi.PodEvent{
				Key: n.Key, Pod: endpoint.Pod(of.Pod), Reason: "PacketsDropped", Note: n.Note,
				Count: n.Count, First: n.First, Last: n.Last,
			}:
			default:
			}
			break
		}
	}
}

// sendDropEvents writes the queued events. Of several errors in a row, it logs only the first.
func (a *agent) sendDropEvents(ctx context.Context, e *dropEvents) {
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-e.queue:
			err := e.to.AnnounceOnPod(ctx, n)
			if err != nil && !failed && ctx.Err() == nil {
				a.Log.Warn("events on pods can't be written", "error", agentapi.OneLine(err.Error()))
			}
			failed = err != nil
		}
	}
}
