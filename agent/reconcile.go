package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weir-net/weir/netfilter"
)

// retry is the time until a failed change is tried again.
const retry = time.Second

// destroyLater is the time until a round goes on destroying sets. Each such round does so for some 20 ms.
const destroyLater = retry / 10

// round is the state of one reconcile.
type round struct {
	*agent
	// verify is how much of the kernel to read, and after applyRuleset how much was read.
	verify   netfilter.Verify
	applied  applied
	guardErr error
	// next is the time until the loop must reconcile even without an event. 0 means that it needn't.
	next time.Duration
}

// steps are the steps of a reconcile, in their order. A step that returns false ends the reconcile.
var steps = []func(*round, context.Context) bool{
	// The ruleset, the gate and the routes to other nodes all depend on which Nodes are accepted.
	(*round).settleNodes,
	(*round).applyRuleset,
	(*round).planWays,
	(*round).reportProblems,
	// After planWays: the gate accepts tunnel packets from the nodes in the plan.
	(*round).keepGuardAndGate,
	// By now it is known whether pods may be enrolled. If not, one of these two steps ends the reconcile.
	(*round).concludeKernel,
	(*round).concludeUnknown,
	// This comes before the runtime's configuration: with that, the runtime calls STATUS, which reads the heartbeat.
	(*round).renewHeartbeat,
	// This comes before the answers. An ADD that is refused as outdated needs a new configuration at its next try.
	(*round).renewConflist,
	(*round).answerPlugins,
	// After the answers, so that no pod's start waits for the remaining steps.
	(*round).reachNodes,
	(*round).reportProblems, // again, with the problems that reachNodes has found
	(*round).bringUpLinks,
	// After bringUpLinks, because it marks pods as enrolled.
	(*round).publishAddresses,
	(*round).walkConnections,
	(*round).retryLeftSets,
	(*round).continueSlices,
}

// reconcile applies the present state to the kernel and answers the waiting plugins. Without a usable state it only
// keeps the pods closed. It returns the time until it must be called again, or 0 if it needn't.
func (a *agent) reconcile(ctx context.Context, verify netfilter.Verify) time.Duration {
	defer a.publishStatus()
	defer a.tellUpkeep()
	if source, ok := a.Source.(Contact); ok {
		a.faults.set(partAPI, source.Contact())
	}
	r := &round{agent: a, verify: max(verify, a.kernel.debt)}
	if !a.cluster.known || !a.records.complete {
		return a.keepClosed(ctx, r.verify)
	}
	began := time.Now()
	defer func() { a.metrics.syncs.Observe(time.Since(began).Seconds()) }()
	for _, step := range steps {
		if !step(r, ctx) {
			break
		}
	}
	return r.next
}

// settleNodes decides again about the Nodes' claims if this node's own addresses have changed.
func (r *round) settleNodes(context.Context) bool {
	r.heedNews(r.verify)
	n := &r.cluster.nodes
	look := r.ways.moved || r.verify == netfilter.All && n.err != nil
	if look && n.readLocal(r.netlink, r.Node) {
		r.settleClaims()
	}
	return true
}

// applyRuleset compiles the ruleset and applies it. It leaves an error to concludeKernel, which ends the round.
func (r *round) applyRuleset(ctx context.Context) bool {
	r.applied = r.apply(ctx, r.verify)
	r.verify = r.applied.verify
	return true
}

func (r *round) planWays(context.Context) bool {
	r.agent.planWays()
	return true
}

func (r *round) reportProblems(context.Context) bool {
	wait := r.problems.report(r.Log, r.applied.ruleset.Problems, slices.Concat(
		r.cluster.nodes.problems, r.ways.problems(), r.misplacedPods()))
	r.next = sooner(r.next, wait)
	return true
}

// keepGuardAndGate repairs the guard and the gate. It leaves an error to concludeKernel, which ends the round.
func (r *round) keepGuardAndGate(context.Context) bool {
	r.guardErr = errors.Join(r.keepGuard(r.verify), r.keepGate(r.verify))
	return true
}

// concludeKernel ends the round, without an enrolment, if the kernel lacks something that it should have. It also
// does so if ctx has ended.
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
		r.cutting.demand(true) // a part of the ruleset may be in the kernel
		r.readEarlier()
	}
	r.faults.set(partKernel, err)
	if err == nil {
		r.kernel.lastSync, r.kernel.debt = time.Now(), netfilter.Trust
		if !r.told.IsZero() && !r.cluster.engine.Changed() {
			r.metrics.delays.Observe(time.Since(r.told).Seconds())
			r.told = time.Time{}
		}
		r.cleanOther(ctx, r.verify)
		return true
	}
	r.stats.Failures++
	r.kernel.debt = netfilter.All
	if r.guardErr == nil && r.applied.unknown() { // each reconcile reads unknown tables anyway
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
	return a.faults.now[partConnections]
}

func (r *round) renewHeartbeat(context.Context) bool {
	r.heartbeat.renew(r.Log)
	return true
}

// renewConflist writes the runtime's configuration while a plugin waits. It does so if this agent hasn't written it
// yet, or is about to refuse the plugin as outdated.
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

// answerPlugins answers the plugins whose answer is final, and those whose deadline is over.
func (r *round) answerPlugins(context.Context) bool {
	r.next = sooner(r.next, r.answer(nil))
	return true
}

// reachNodes sets up the ways to other nodes, and writes the runtime's configuration. It asks for another round if
// that must be repeated.
func (r *round) reachNodes(context.Context) bool {
	if !r.reach() {
		r.next = sooner(r.next, retry)
	}
	return true
}

// bringUpLinks brings up the links of pods that started while no agent ran.
func (r *round) bringUpLinks(context.Context) bool {
	r.agent.bringUpLinks()
	return true
}

// publishAddresses publishes the addresses of enrolled pods to other nodes, if the source can do that.
func (r *round) publishAddresses(ctx context.Context) bool {
	if source, ok := r.Source.(Publisher); ok {
		r.publisher.publish(ctx, source, r.enrolments.done, r.records.copies())
	}
	return true
}

// walkConnections starts a walk through the connections if one is due. The kernel has the ruleset by now.
func (r *round) walkConnections(context.Context) bool {
	r.walk()
	return true
}

// retryLeftSets asks for another round if sets are still to be destroyed. If the last round left the same sets, a rule
// of another program may use them. Then the next round waits longer.
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

// continueSlices asks for another round at once if the engine still has sets to make. Waiting events come first, so
// large policies hold up nothing else.
func (r *round) continueSlices(context.Context) bool {
	if r.cluster.engine.HasSlice() {
		r.next = time.Nanosecond
	}
	return true
}

// sooner returns the shorter of two waits. 0 is no wait at all, so then it returns the other.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
