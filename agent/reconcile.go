package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weir-net/weir/netfilter"
)

// retry is how soon a failed change is tried again.
const retry = time.Second

// round is one reconcile on its way through the steps.
type round struct {
	*agent
	// verify is how much of the kernel is read; once the ruleset is applied, how much was.
	verify  netfilter.Verify
	applied applied
	// guardErr says that the guard or the gate isn't as it should be.
	guardErr error
	// next is how soon the loop reconciles again even if nothing happens; 0 if there is no need.
	next time.Duration
}

// steps of a reconcile, in their order. A step that returns false ends it.
var steps = []func(*round, context.Context) bool{
	// The ruleset, the gate and the ways all depend on which Nodes are accepted.
	(*round).settleNodes,
	(*round).applyRuleset,
	// After the ruleset: where the kernel was read, the node's routes are read too.
	(*round).planWays,
	(*round).reportProblems,
	// After the plan: the gate accepts tunnel packets from the nodes in it.
	(*round).keepGuardAndGate,
	// From here on it is known whether pods may be enrolled. If not, one of these two answers the plugins.
	(*round).concludeKernel,
	(*round).concludeUnknown,
	// Before the runtime's configuration is there: then the runtime asks the plugin, which goes by the heartbeat.
	(*round).renewHeartbeat,
	// Before the answers: an ADD that is refused as outdated finds the configuration renewed when it is tried again.
	(*round).renewConflist,
	(*round).answerPlugins,
	// After the answers: no pod's start waits for the rest.
	(*round).reachNodes,
	(*round).reportProblems, // of the ways too
	(*round).bringUpLinks,
	// After the links: pods whose links were brought up here are enrolled by that.
	(*round).publishAddresses,
	(*round).walkConnections,
	(*round).retryLeftSets,
}

// reconcile brings what is known into the kernel and answers the plugins that wait. It returns how soon it should be
// called again even if nothing happens; 0 if there is no need.
func (a *agent) reconcile(ctx context.Context, verify netfilter.Verify) time.Duration {
	defer a.publishStatus()
	defer a.tellUpkeep()
	if source, ok := a.Source.(Contact); ok {
		a.faults.set(partAPI, source.Contact())
	}
	r := &round{agent: a, verify: max(verify, a.kernel.debt)}
	if a.cluster.objects == nil || !a.records.complete {
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

// settleNodes evaluates the Nodes' claims again if the addresses that this node needs itself have changed.
func (r *round) settleNodes(context.Context) bool {
	n := &r.cluster.nodes
	if r.verify == netfilter.All && n.latest != nil && n.readLocal(r.netlink, r.Node) {
		n.stated = nil
		r.acceptNodes(n.latest)
	}
	return true
}

// applyRuleset compiles the ruleset and brings it into the kernel.
func (r *round) applyRuleset(ctx context.Context) bool {
	r.applied = r.apply(ctx, r.verify)
	r.verify = r.applied.verify
	return true
}

// planWays plans the ways to other nodes.
func (r *round) planWays(context.Context) bool {
	r.agent.planWays(r.verify)
	return true
}

// reportProblems reports the problems of objects that are known now.
func (r *round) reportProblems(context.Context) bool {
	r.problems.report(r.Log, slices.Concat(r.applied.ruleset.Problems, r.ways.problems(), r.misplacedPods()))
	return true
}

// keepGuardAndGate repairs the spoof guard and the gate for tunnel packets.
func (r *round) keepGuardAndGate(context.Context) bool {
	r.guardErr = errors.Join(r.keepGuard(r.verify), r.keepGate(r.verify))
	return true
}

// concludeKernel takes note of whether the kernel has all that it should. If it doesn't, no pod is enrolled.
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
		r.cutting.due = true // some of it may be in the kernel
		r.readEarlier()
	}
	r.faults.set(partKernel, err)
	if err == nil {
		r.kernel.lastSync, r.kernel.debt = time.Now(), netfilter.Trust
		r.cleanOther(ctx, r.verify)
		return true
	}
	r.stats.Failures++
	r.kernel.debt = netfilter.All
	if r.guardErr == nil && r.applied.unknown() { // tables that are unknown are read each time
		r.kernel.debt = netfilter.Trust
	}
	if done {
		r.walk()
	}
	r.next = sooner(r.answer(err), retry)
	return false
}

// concludeUnknown ends the round if the kernel has all that the agent knows, but the agent doesn't know all.
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

// unknown says what the agent doesn't know although no pod may be enrolled without; nil if it knows all.
func (a *agent) unknown() error {
	if a.records.stale {
		return a.faults.now[partRecords]
	}
	return a.faults.now[partConnections]
}

// renewHeartbeat tells the plugin that the agent is well.
func (r *round) renewHeartbeat(context.Context) bool {
	r.heartbeat.renew(r.Log)
	return true
}

// renewConflist writes the runtime's configuration before an attachment that was made by another one is refused.
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

// answerPlugins answers the plugins whose pods are in their classes now.
func (r *round) answerPlugins(context.Context) bool {
	r.next = r.answer(nil)
	return true
}

// reachNodes brings the ways to other nodes into the kernel.
func (r *round) reachNodes(context.Context) bool {
	if !r.reach(r.verify) {
		r.next = sooner(r.next, retry)
	}
	return true
}

// bringUpLinks brings up the links of pods that started while there was no agent.
func (r *round) bringUpLinks(context.Context) bool {
	r.agent.bringUpLinks()
	return true
}

// publishAddresses publishes the addresses of enrolled pods to other nodes.
func (r *round) publishAddresses(ctx context.Context) bool {
	if source, ok := r.Source.(Publisher); ok {
		r.publisher.publish(ctx, source, r.enrolments.done, r.records.endpoints)
	}
	return true
}

// walkConnections starts a walk through the connections, if one is due: the kernel has the rules that it goes by.
func (r *round) walkConnections(context.Context) bool {
	r.walk()
	return true
}

// retryLeftSets asks for another round if the kernel doesn't let go of sets yet.
func (r *round) retryLeftSets(context.Context) bool {
	if len(r.applied.Left) > 0 {
		r.next = sooner(r.next, retry)
	}
	return true
}

// sooner is the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
