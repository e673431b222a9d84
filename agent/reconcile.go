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
	// verify is how much of the kernel to read. After applyRuleset it is how much was read.
	verify  netfilter.Verify
	applied applied
	// guardErr is not nil if the guard or the gate isn't as it should be.
	guardErr error
	// next is the time until the loop must reconcile again even if nothing happens; 0 if it needn't.
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
	// By now it is known whether pods may be enrolled. If they may not, one of these two steps answers the plugins and
	// ends the reconcile.
	(*round).concludeKernel,
	(*round).concludeUnknown,
	// Before the runtime's configuration: once the configuration exists, the runtime calls the plugin's STATUS, which
	// reads the heartbeat.
	(*round).renewHeartbeat,
	// Before the answers: an ADD that is refused as outdated finds a new configuration at its next try.
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

// reconcile applies the present state to the kernel and answers the plugins that wait. If the source has given no
// usable state yet, or the records weren't read yet, it only keeps the pods closed. It returns the time until it must
// be called again even if nothing happens; 0 if it needn't.
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

// settleNodes evaluates the Nodes' claims again if the addresses that this node itself needs have changed.
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

// keepGuardAndGate repairs the guard and the gate for tunnel packets. It leaves an error to concludeKernel, which
// ends the round.
func (r *round) keepGuardAndGate(context.Context) bool {
	r.guardErr = errors.Join(r.keepGuard(r.verify), r.keepGate(r.verify))
	return true
}

// concludeKernel records whether the kernel has everything that it should have. If it doesn't, no pod is enrolled, and
// the round ends. The round also ends if ctx has ended.
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

// concludeUnknown ends the round if the kernel has the ruleset, but the records or connections are unknown. Then no pod
// is enrolled.
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

// unknown returns the error of the records or connections that could not be read; nil if all could be read.
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

// renewConflist writes the runtime's configuration if the agent is about to refuse a waiting plugin's attachment as
// outdated, or if a plugin waits and this agent hasn't written the configuration yet.
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

// reachNodes sets up the tunnel and the routes to other nodes' pods, and writes the runtime's configuration. If that
// must be done again, it asks for another round.
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

// retryLeftSets asks for another round if sets that the ruleset no longer has are still to be destroyed. If the last
// round left the same sets, a rule of another program may use them, and then the kernel refuses to destroy them.
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

// continueSlices asks for another round at once if the engine still has sets to make. The loop takes events that wait
// before that round, so large policies hold up neither pods that start nor other changes.
func (r *round) continueSlices(context.Context) bool {
	if r.cluster.engine.HasSlice() {
		r.next = time.Nanosecond
	}
	return true
}

// sooner returns the shorter of two waits. 0 means that nothing is to be waited for: if one wait is 0, sooner returns
// the other.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
