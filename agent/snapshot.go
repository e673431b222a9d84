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

// snapshot is one immutable view of the node: its endpoints, and the ruleset compiled for them. Nothing that it points
// to changes, so any goroutine may read it.
type snapshot struct {
	// revision counts the snapshots of this agent from 1; the empty first snapshot has 0.
	revision  uint64
	endpoints []policy.Endpoint
	ruleset   ruleset.Ruleset
	// compiled is the ruleset before sets were merged, which gives the same verdicts.
	compiled ruleset.Ruleset
	// delta is the number of the source's last delta that the ruleset was made from, with all deltas before it.
	delta uint64
	// nodes are the Nodes with their accepted claims, and lookups the pods that the agent has looked up.
	nodes   []policy.Node
	lookups []*policy.Pod
}

// snapshots has the two newest snapshots that matter. The loop stores them; any goroutine may load them. Neither is
// ever nil.
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

// sliceTime is how long the engine works on new sets in one round. If an event comes, it waits as long at most, and for
// the kernel's part of the slice.
const sliceTime = 2 * time.Millisecond

// compile makes the ruleset of the present state the target.
func (a *agent) compile() *snapshot {
	next := a.present()
	a.snapshots.target.Store(next)
	return next
}

// present returns a snapshot of the present state. Its ruleset lacks sets if the engine has too many to make at once:
// then the engine's Changed returns true, and the next snapshot has more of them.
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

// class returns the names of the policies that isolate the pod in that direction. It returns classOpen if no policy
// isolates the pod, agentapi.ClassAudited with their names if audited ones would, and classClosed if the pod is in no
// class.
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

// policyEndpoint returns the part of an endpoint record that policy needs.
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
