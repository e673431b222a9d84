package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weir-net/weir/netfilter"
)

const retry = time.Second

// destroyLater is the time until the next round goes on destroying sets. Destroying an ipset may take milliseconds, so
// a round destroys only a part of many sets.
const destroyLater = retry / 10

type round struct {
	*agent
	// verify is how much of the kernel to read. After applyRuleset it is how much was read.
	verify   netfilter.Verify
	applied  applied
	guardErr error
	began    time.Time
	next     time.Duration
}

var steps = []func(*round, context.Context) bool{
	// The ruleset, the gate and the routes depend on the accepted Nodes.
	(*round).settleNodes,
	(*round).applyRuleset,
	(*round).planOverlay,
	(*round).lookForUnattached, // after applyRuleset, which reads the records anew
	(*round).reportProblems,
	// The gate accepts tunnel packets from the nodes in the plan, so it comes after planOverlay.
	(*round).keepGuardAndGate,
	// By now it is known whether pods may be enrolled. If they may not, one of the next two steps ends the reconcile.
	(*round).concludeKernel,
	(*round).concludeUnknown,
	// Once there is a network configuration, the runtime calls STATUS, which reads the heartbeat. So this step comes
	// before renewConflist.
	(*round).renewHeartbeat,
	// An ADD that is refused as outdated needs a new network configuration at its next try. So this step comes before
	// answerPlugins.
	(*round).renewConflist,
	(*round).answerPlugins,
	// The plugins have their answers, so no pod's start waits for the remaining steps.
	(*round).reachNodes,
	(*round).reportProblems, // this time with the problems that reachNodes has found
	(*round).bringUpLinks,
	// publishAddresses publishes only enrolled pods, and bringUpLinks marks pods as enrolled.
	(*round).publishAddresses,
	(*round).walkConnections,
	(*round).retryLeftSets,
	(*round).continueSlices,
}

// reconcile applies the present state and answers the waiting plugins. Without a usable state it keeps the pods
// closed. It returns the time until the next call; 0 means that none is due.
func (a *agent) reconcile(ctx context.Context, verify netfilter.Verify) time.Duration {
	defer a.publishStatus()
	defer a.tellUpkeep()
	defer func() { a.cluster.hurried = false }()
	if source, ok := a.Source.(Contact); ok {
		a.faults.set(partAPI, source.Contact())
	}
	a.moveIfChosen(ctx) // not one of the steps, because the first choice needs no usable state
	r := &round{agent: a, verify: max(verify, a.kernel.debt)}
	if !a.cluster.known || !a.records.complete {
		return a.keepClosed(ctx, r.verify)
	}
	if a.cleaningDue() {
		r.verify = netfilter.All
	}
	r.began = time.Now()
	defer func() { a.metrics.syncs.Observe(time.Since(r.began).Seconds()) }()
	for _, step := range steps {
		if !step(r, ctx) {
			break
		}
	}
	return r.next
}

func (r *round) settleNodes(context.Context) bool {
	r.heedNews(r.verify)
	n := &r.cluster.nodes
	look := r.overlay.moved || r.verify == netfilter.All && n.err != nil
	if look && n.readLocal(r.netlink, r.Node) {
		r.settleClaims()
	}
	return true
}

// applyRuleset never ends the round: concludeKernel handles its error later.
func (r *round) applyRuleset(ctx context.Context) bool {
	r.applied = r.apply(ctx, r.verify)
	r.verify = r.applied.verify
	return true
}

func (r *round) planOverlay(context.Context) bool {
	r.agent.planOverlay()
	return true
}

func (r *round) reportProblems(context.Context) bool {
	wait := r.problems.report(r.Log, r.applied.ruleset.Problems, slices.Concat(
		r.cluster.nodes.problems, r.overlay.problems(), r.misplacedPods(), r.problemsOfBackend()))
	r.next = sooner(r.next, wait)
	return true
}

// keepGuardAndGate never ends the round: concludeKernel handles its error later.
func (r *round) keepGuardAndGate(context.Context) bool {
	r.guardErr = errors.Join(r.keepGuard(r.verify), r.keepLinkLocal(r.verify), r.keepGate(r.verify))
	return true
}

func (r *round) concludeKernel(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	err := r.applied.err
	if r.guardErr != nil {
		err = errors.Join(err, r.guardErr)
	}
	done := r.applied.done()
	if done {
		r.takeApplied(r.applied, err == nil)
	} else {
		r.cutting.makeDue(true) // the kernel may have a part of the ruleset
		r.readEarlier()
	}
	r.faults.set(partKernel, err)
	if err == nil {
		r.kernel.lastSync, r.kernel.debt = time.Now(), netfilter.Trust
		if !r.oldestChange.IsZero() && !r.cluster.engine.Changed() {
			r.metrics.delays.Observe(time.Since(r.oldestChange).Seconds())
			r.oldestChange = time.Time{}
		}
		r.cleanOther(ctx)
		return true
	}
	r.stats.Failures++
	r.kernel.debt = netfilter.All
	if r.guardErr == nil && r.applied.unknown() {
		// The next reconcile needn't read everything (netfilter.All): even with netfilter.Trust, it tries to read the
		// tables that couldn't be read.
		r.kernel.debt = netfilter.Trust
	}
	if done {
		r.walk()
	}
	r.next = sooner(r.answer(err), retry)
	return false
}

// concludeUnknown ends the round if the records or connections are unknown. Then no pod is enrolled.
func (r *round) concludeUnknown(context.Context) bool {
	err := r.unknown()
	if err == nil {
		return true
	}
	if r.records.stale {
		r.kernel.debt = netfilter.All
	}
	r.walk()
	r.next = sooner(r.answer(err), retry)
	return false
}

func (a *agent) unknown() error {
	if a.records.stale {
		return a.faults.now[partRecords]
	}
	if a.moving.both && a.faults.now[partLeftovers] != nil {
		return a.faults.now[partLeftovers] // the other backend's rules would drop the packets of new pods
	}
	return a.faults.now[partConnections]
}

func (r *round) renewHeartbeat(context.Context) bool {
	r.faults.set(partHeartbeat, r.heartbeat.renew())
	return true
}

// renewConflist writes the runtime's network configuration if a waiting plugin has an outdated one, or if a plugin
// waits and the agent has written none yet.
func (r *round) renewConflist(context.Context) bool {
	needed := func(e *enrolment) bool {
		ep, ok := r.records.endpoints[e.id]
		return ok && (r.conflist.mtu == 0 || r.outdated(ep) != "")
	}
	if r.Node.Name != "" && slices.ContainsFunc(r.enrolments.waiting, needed) {
		if err := r.writeConflist(); err != nil {
			r.faults.set(partNodes, err)
		}
	}
	return true
}

func (r *round) answerPlugins(context.Context) bool {
	r.next = sooner(r.next, r.answer(nil))
	return true
}

// reachNodes asks for another round if the routes and tunnels to other nodes can't be set up.
func (r *round) reachNodes(context.Context) bool {
	if !r.reach() {
		r.next = sooner(r.next, retry)
	}
	return true
}

func (r *round) bringUpLinks(context.Context) bool {
	r.agent.bringUpLinks()
	return true
}

func (r *round) publishAddresses(ctx context.Context) bool {
	if source, ok := r.Source.(Publisher); ok {
		r.publisher.publish(ctx, source, r.enrolments.done, r.records.copies())
	}
	return true
}

func (r *round) walkConnections(context.Context) bool {
	r.walk()
	return true
}

// retryLeftSets asks for another round if sets could not be destroyed. If the same sets are left twice, a rule of
// another program may use them, so the next round comes later.
func (r *round) retryLeftSets(context.Context) bool {
	left := r.applied.Left
	switch {
	case len(left) == 0:
	case slices.Equal(left, r.kernel.left):
		r.next = sooner(r.next, retry)
	default:
		r.next = sooner(r.next, destroyLater)
	}
	r.kernel.left = left
	return true
}

const (
	// quickSlices is how many rounds for more sets follow one another without a rest.
	quickSlices = 16
	// mostRest is the longest rest. If rounds for events have delayed the next round for sets by more than mostRest, that
	// round comes without a rest.
	mostRest = 100 * time.Millisecond
)

// restAfter returns how long to rest after work for large policies. took is how long the work took. Because of the
// rest, events rarely have to wait for this work, or for a processor.
func restAfter(took time.Duration) time.Duration { return min(3*took, mostRest) }

// continueSlices asks for another round if the engine has more sets to make. The loop handles waiting events before
// that round. After quickSlices such rounds, the loop rests before each further one.
func (r *round) continueSlices(context.Context) bool {
	c := &r.cluster
	if !c.engine.HasSlice() {
		c.slices = 0
		return true
	}
	if !c.hurried {
		c.slices, c.sliced = c.slices+1, time.Now()
	}
	rest := restAfter(time.Since(r.began))
	if c.slices <= quickSlices || time.Since(c.sliced) > mostRest {
		rest = 0
	}
	r.next = sooner(r.next, max(rest, time.Nanosecond))
	return true
}

func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
