package agent

import (
	"context"
	"slices"
	"time"

	"github.com/weir-net/weir/netfilter"
)

// loop waits for events, and reconciles after each, at each resync, and when something is to be tried again.
func (a *agent) loop(ctx context.Context) error {
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		todo := work{reconcile: true}
		select {
		case <-ctx.Done():
			if a.cutting.walking {
				<-a.cutting.results
			}
			return nil
		case e := <-a.events:
			todo = a.handleAll(e)
		case <-a.drift.news:
			todo = a.heedDrift()
		case <-resync.C:
			a.prepareResync(ctx)
			todo.verify = netfilter.All
		case <-again.C:
		case w := <-a.cutting.results:
			todo.reconcile = a.takeWalk(w)
			if w.err != nil {
				again.Reset(retry)
			}
		}
		if !todo.reconcile {
			continue
		}
		a.lastRound.Store(time.Now().UnixNano())
		again.Stop()
		if next := a.reconcile(ctx, todo.verify); next > 0 {
			again.Reset(next)
		}
	}
}

// heedDrift looks at the changes of rules that the kernel has told of. Those that the agent made itself need no work.
func (a *agent) heedDrift() work {
	if !slices.ContainsFunc(a.drift.take(), func(g uint32) bool { return !a.backend.Knows(g) }) {
		return work{}
	}
	return work{true, netfilter.All}
}

// prepareResync tries again what has failed before, as a resync is to read everything.
func (a *agent) prepareResync(ctx context.Context) {
	a.retryRecords()
	a.kernel.refused = nil // the kernel may accept it by now: a module was loaded, or there is room
	a.reportShortage(ctx)
}
