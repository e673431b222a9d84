package agent

import (
	"context"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
)

// event is something that another goroutine tells the loop. Each kind has a type; handle says what the loop does.
type event interface{ isEvent() }

type (
	// sourceUpdate is a new state of the source's objects, as Source.Run gives it.
	sourceUpdate struct {
		objects *policy.Objects
		err     error
	}
	// recordsChanged tells of endpoint records that were written or removed.
	recordsChanged struct{ dirwatch.Change }
	// enrolRequest is a plugin that waits for its pod to be enrolled.
	enrolRequest struct {
		ctx context.Context // of the plugin's HTTP request
		*enrolment
	}
	// podLookedUp is the source's answer to a Lookup for the endpoint with that ID.
	podLookedUp struct {
		id string
		lookup
	}
	// waysChanged says that links, addresses or routes to other nodes may have changed.
	waysChanged struct{}
	// nodeChecked is the result of a look at the node settings.
	nodeChecked struct {
		differences []bridge.Difference
		err         error
	}
	// straysEvicted says that another program's addresses were taken out of the sets of all pods.
	straysEvicted struct{}
)

func (sourceUpdate) isEvent()   {}
func (recordsChanged) isEvent() {}
func (enrolRequest) isEvent()   {}
func (podLookedUp) isEvent()    {}
func (waysChanged) isEvent()    {}
func (nodeChecked) isEvent()    {}
func (straysEvicted) isEvent()  {}

// work is what events leave to be done. The zero value is nothing.
type work struct {
	reconcile bool
	// verify is how much of the kernel the reconcile reads at least.
	verify netfilter.Verify
}

// and is the work of two events together.
func (w work) and(o work) work {
	return work{w.reconcile || o.reconcile, max(w.verify, o.verify)}
}

// send gives the event to the loop and returns when the loop has received it. It returns false if ctx ends before.
func (a *agent) send(ctx context.Context, e event) bool {
	select {
	case a.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// handleAll handles the event and all others that wait to be received: one reconcile is enough for all of them, and a
// new pod may depend on one of them.
func (a *agent) handleAll(e event) work {
	todo := a.handle(e)
	for {
		select {
		case e := <-a.events:
			todo = todo.and(a.handle(e))
		default:
			return todo
		}
	}
}

// handle takes the event into the agent's state.
func (a *agent) handle(e event) work {
	switch e := e.(type) {
	case sourceUpdate:
		a.takeUpdate(e.objects, e.err)
		return work{reconcile: true}
	case recordsChanged:
		return a.takeRecords(e.Change)
	case enrolRequest:
		a.takeEnrolment(e.ctx, e.enrolment)
		return work{true, a.chainsToVerify(e.ctx)}
	case podLookedUp:
		a.cluster.addLookup(e.id, e.lookup, a.records.endpoints)
		return work{reconcile: true}
	case waysChanged:
		return work{reconcile: true}
	case nodeChecked:
		a.takeNodeCheck(e.differences, e.err)
	case straysEvicted:
		a.stats.Repairs++
	}
	return work{}
}
