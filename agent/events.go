package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/weir-net/weir/agent/choice"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
)

type event interface{ isEvent() }

type (
	sourceUpdate struct {
		*policy.Delta
		err  error
		told time.Time // when the source reported the changes
	}
	recordsChanged struct{ dirwatch.Change }
	enrolRequest   struct{ *enrolment }
	podLookedUp    struct {
		id string
		lookup
	}
	policyParsed struct{ *policy.Unparsed }
	parserRested struct{}
	// overlayChanged means that the tunnel or weir's routes to other nodes may have changed.
	overlayChanged struct{}
	nodeChecked    struct {
		differences []bridge.Difference
		err         error
	}
	// backendChosen says which backend the agent should use, and why. It comes when the backend or the reason has
	// changed.
	backendChosen struct{ choice.Choice }
	straysEvicted struct{}
	// namesWanted asks for the names of pods. The channel must have room for the answer, so that the loop never waits.
	namesWanted struct {
		addresses []netip.Addr
		answer    chan<- map[netip.Addr]string
	}
	// stateWanted asks for the pods, namespaces and policies that decide on packets between these addresses. The
	// channel must have room for the answer, so that the loop never waits.
	stateWanted struct {
		addresses []netip.Addr
		answer    chan<- policy.State
	}
)

func (sourceUpdate) isEvent()   {}
func (recordsChanged) isEvent() {}
func (enrolRequest) isEvent()   {}
func (podLookedUp) isEvent()    {}
func (policyParsed) isEvent()   {}
func (parserRested) isEvent()   {}
func (overlayChanged) isEvent() {}
func (nodeChecked) isEvent()    {}
func (backendChosen) isEvent()  {}
func (straysEvicted) isEvent()  {}
func (namesWanted) isEvent()    {}
func (stateWanted) isEvent()    {}

type work struct {
	reconcile bool
	// verify is how much of the kernel the reconcile must read at least.
	verify netfilter.Verify
}

func (w work) and(o work) work {
	return work{w.reconcile || o.reconcile, max(w.verify, o.verify)}
}

func (a *agent) send(ctx context.Context, e event) bool {
	select {
	case a.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// handleAll handles the event and all other waiting events, so one reconcile is enough for all of them.
func (a *agent) handleAll(e event) work {
	remaining := a.handle(e)
	for {
		select {
		case e := <-a.events:
			remaining = remaining.and(a.handle(e))
		default:
			a.cluster.hurried = remaining.reconcile
			return remaining
		}
	}
}

func (a *agent) handle(e event) work {
	switch e := e.(type) {
	case sourceUpdate:
		remaining := a.takeUpdate(e.Delta, e.err)
		if e.Delta != nil && remaining.reconcile && a.oldestChange.IsZero() {
			a.oldestChange = e.told
		}
		return remaining
	case recordsChanged:
		return a.takeRecords(e.Change)
	case enrolRequest:
		a.takeEnrolment(e.enrolment)
		return work{true, a.chainsToVerify(e.ctx)}
	case podLookedUp:
		a.cluster.addLookup(e.id, e.lookup, a.records.endpoints)
		return work{reconcile: true}
	case policyParsed:
		return a.takeParsed(e.Unparsed)
	case parserRested:
		a.cluster.parsing = false
	case overlayChanged:
		return work{reconcile: true}
	case nodeChecked:
		a.takeNodeCheck(e.differences, e.err)
	case backendChosen:
		a.moving.chosen, a.moving.again = e.Choice, time.Time{}
		if a.moving.inUse == "" && e.Backend == "" {
			a.use(neither{reason: e.Reason}, "")
		}
		a.publishStatus()
		return work{reconcile: true}
	case straysEvicted:
		a.stats.Repairs++
	case namesWanted:
		e.answer <- a.cluster.namesOf(e.addresses)
	case stateWanted:
		e.answer <- a.cluster.engine.Around(e.addresses)
	}
	return work{}
}
