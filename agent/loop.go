package agent

import (
	"context"
	"slices"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
)

func (a *agent) loop(ctx context.Context) error {
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		a.parseNext(ctx)
		remaining := work{reconcile: true}
		select {
		case <-ctx.Done():
			if a.cutting.walking {
				<-a.cutting.results
			}
			return nil
		case e := <-a.events:
			a.turn.Lock()
			remaining = a.handleAll(e) // an enrolment reads sets from the kernel, so turn must be locked
			a.turn.Unlock()
		case <-a.drift.news:
			remaining = a.heedDrift()
		case <-resync.C:
			a.prepareResync(ctx)
			remaining.verify = netfilter.All
			a.turn.Lock()
			a.refresh(ctx)
			a.turn.Unlock()
		case <-again.C:
		case w := <-a.cutting.results:
			remaining.reconcile = a.takeWalk(w)
			if w.err != nil {
				again.Reset(retry)
			}
		case <-a.cutting.pause.C:
			a.endPause()
			remaining.reconcile = false
		}
		if !remaining.reconcile {
			continue
		}
		a.beginRound()
		again.Stop()
		a.turn.Lock()
		next := a.reconcile(ctx, remaining.verify)
		a.turn.Unlock()
		if next > 0 {
			again.Reset(next)
		}
	}
}

// beginRound records the time for serveHealth. Changes of the node's clock don't matter: a time.Time from time.Now has
// a monotonic clock reading.
func (a *agent) beginRound() {
	now := time.Now()
	a.lastRound.Store(&now)
}

// refresh reads the kernel for a resync, part by part. Between two parts it handles all waiting events, so no pod and
// no policy waits for the whole resync.
func (a *agent) refresh(ctx context.Context) {
	if !a.cluster.known || !a.records.complete || a.kernel.debt == netfilter.All {
		return // then the reconcile reads everything itself
	}
	a.kernel.refreshing = true
	defer func() { a.kernel.refreshing = false }()
	for ctx.Err() == nil {
		var next event
		done, err := a.backend.Refresh(ctx, func() bool {
			select {
			case next = <-a.events:
				return true
			default:
				return false
			}
		})
		if done || err != nil {
			a.kernel.refreshed = err == nil // after an error the reconcile reads everything, and reports the error
			return
		}
		if w := a.handleAll(next); w.reconcile {
			// A pod may have ended before the agent read a set, and the message about its record may not have come yet. With
			// the old records, the agent would put the pod's addresses into the set again.
			a.takeRecords(dirwatch.Change{Lost: true})
			a.beginRound()
			a.reconcile(ctx, w.verify)
		}
		a.parseNext(ctx)
	}
}

// parseNext parses one large policy at a time, beside the loop. The result comes as an event (policyParsed). The next
// policy is parsed after a rest (restAfter).
func (a *agent) parseNext(ctx context.Context) {
	if a.cluster.parsing {
		return
	}
	next := a.cluster.engine.NextUnparsed()
	if next == nil {
		return
	}
	a.cluster.parsing = true
	go func() {
		began := time.Now()
		next.Parse()
		rest := restAfter(time.Since(began))
		a.send(ctx, policyParsed{next})
		select {
		case <-time.After(rest):
			a.send(ctx, parserRested{})
		case <-ctx.Done():
		}
	}()
}

func (a *agent) heedDrift() work {
	if !slices.ContainsFunc(a.drift.take(), func(g uint32) bool { return !a.backend.Knows(g) }) {
		return work{}
	}
	return work{true, netfilter.All}
}

func (a *agent) prepareResync(ctx context.Context) {
	a.retryRecords()
	a.keepBackendName()
	a.kernel.refused = nil // the kernel may accept these parts now: a module was loaded, or there is room again
	a.reportShortage(ctx)
	a.checkRuntime()
	a.cutting.makeDue(a.cutting.held)
	a.faults.set(partTable, a.table.full())
	a.faults.set(partRoom, roomLeft(endpoint.Dir))
}
