package agent

import (
	"context"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
)

const maxEventsWaiting = 64

// dropEvents makes events on pods whose packets were dropped. note never waits.
type dropEvents struct {
	to     PodAnnouncer // nil: no events are made
	events *drops.Events
	queue  chan agentapi.PodEvent
}

// newDropEvents returns dropEvents. They make no events if the agent wasn't told to, or its source can't.
func (a *agent) newDropEvents() *dropEvents {
	e := &dropEvents{events: drops.NewEvents(), queue: make(chan agentapi.PodEvent, maxEventsWaiting)}
	if to, ok := a.Source.(PodAnnouncer); ok && a.DropEvents {
		e.to = to
	}
	return e
}

// note queues events about the drops, as far as they are due.
func (e *dropEvents) note(entries []drops.Entry, s *snapshot) {
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

// sendDropEvents sends the queued events until ctx ends. It logs an error only if the event before had none.
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
