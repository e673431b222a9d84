package agent

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// snapshot is one view of the node: its endpoints, and their ruleset. Nothing in it ever changes, so any goroutine
// may read it.
type snapshot struct {
	// revision counts the snapshots of this agent from 1; the empty first snapshot has 0.
	revision  uint64
	endpoints []policy.Endpoint
	ruleset   ruleset.Ruleset
	// compiled is the ruleset before sets were merged, which gives the same verdicts.
	compiled ruleset.Ruleset
	// delta is the number of the source's last delta that the ruleset contains.
	delta uint64
	// nodes are the Nodes with their accepted claims, and lookups the pods that the agent has looked up.
	nodes   []policy.Node
	lookups []*policy.Pod
}

// snapshots has the target and the enforced snapshot, which are never nil. The loop stores them. Any goroutine may
// load them.
type snapshots struct {
	// target is the snapshot that the kernel has or is about to have. The loop stores it before it changes the kernel.
	target atomic.Pointer[snapshot]
	// enforced is the snapshot that was last applied to the kernel. While the kernel can't be changed, enforced is
	// older than target.
	enforced atomic.Pointer[snapshot]
}

func (s *snapshots) init() {
	s.target.Store(&snapshot{})
	s.enforced.Store(&snapshot{})
}

// sliceTime is how long the engine works on new sets in one round. An event waits about so long.
const sliceTime = 2 * time.Millisecond

// compile makes the ruleset of the present state the target.
func (a *agent) compile() *snapshot {
	next := a.present()
	a.snapshots.target.Store(next)
	return next
}

// present returns a snapshot of the present state. If there are too many sets to make at once, the next snapshot has
// more of them: the engine's Changed then returns true.
func (a *agent) present() *snapshot {
	records := a.records.copies()
	next := &snapshot{revision: a.snapshots.target.Load().revision + 1, endpoints: records.attached}
	next.nodes, next.delta = a.cluster.nodes.accepted, a.snapshots.target.Load().delta
	for _, l := range a.cluster.lookups {
		next.lookups = append(next.lookups, l.pod)
	}
	engine := a.cluster.engine
	if a.cluster.attached != records {
		engine.SetEndpoints(records.attached)
		a.cluster.attached = records
	}
	engine.SetRefused(a.kernel.refused)
	if a.kernel.lastSync.IsZero() { // the kernel may have all sets of an earlier agent, and must not lose some of them
		next.compiled = engine.Ruleset()
	} else {
		began := time.Now()
		next.compiled = engine.Slice(func() bool { return time.Since(began) > sliceTime })
	}
	if !engine.Changed() { // no set is left for the next slice
		next.delta = a.cluster.delta
	}
	next.ruleset = a.merger.Merge(next.compiled, a.kernel.refused)
	return next
}

// class returns the policies that isolate the pod in that direction, or classOpen. It returns agentapi.ClassAudited
// with names if only audited policies would. It returns classClosed if the pod is in no class.
func (s *snapshot) class(d ruleset.Direction, pod string) string {
	for _, c := range s.ruleset.Classes {
		if c.Direction != d || !slices.Contains(c.Pods, pod) {
			continue
		}
		switch {
		case len(c.Audited) > 0:
			return agentapi.ClassAudited + excerpt.List(c.Audited, ", ")
		case len(c.Policies) == 0:
			return classOpen
		}
		return excerpt.List(c.Policies, ", ") // Status.Classes has all
	}
	return classClosed
}

func policyEndpoint(e endpoint.Endpoint) policy.Endpoint {
	p := policy.Endpoint{
		ID: e.ID(), Pod: policy.PodRef(e.Pod), Enforcement: e.Enforcement,
		Chained: e.Chained, HostIf: e.HostIf, BridgeIf: e.BridgeIf,
	}
	for _, a := range e.Addresses {
		p.Addresses = append(p.Addresses, policy.Address{Addr: a.Addr, Subnet: a.Subnet})
	}
	return p
}
