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

// A snapshot is the node's endpoints and their ruleset. It never changes, so any goroutine may read it. The cluster's
// objects stay in the engine, which changes them in place: a copy in each snapshot would cost too much. So other
// goroutines ask the loop for these objects (stateWanted).
type snapshot struct {
	endpoints []policy.Endpoint
	ruleset   ruleset.Ruleset
	// compiled is the ruleset before sets were merged. Both rulesets give the same verdicts.
	compiled ruleset.Ruleset
	delta    uint64
	nodes    []policy.Node
	lookups  []*policy.Pod
}

// sharesNodes reports whether the snapshots have the same list of Nodes. It compares no Nodes, because there may be
// thousands.
func (s *snapshot) sharesNodes(o *snapshot) bool {
	return len(s.nodes) == len(o.nodes) && (len(s.nodes) == 0 || &s.nodes[0] == &o.nodes[0])
}

// snapshots are stored by the loop, and loaded by any goroutine. They are never nil.
type snapshots struct {
	// target has the ruleset that the kernel has or is about to get. The loop stores target before it changes the kernel.
	target atomic.Pointer[snapshot]
	// enforced is the snapshot that was last applied to the kernel. It is older than target while the kernel can't be
	// changed.
	enforced atomic.Pointer[snapshot]
}

func (s *snapshots) init() {
	s.target.Store(&snapshot{})
	s.enforced.Store(&snapshot{})
}

// sliceTime bounds the engine's work on new sets in one round. An event may have to wait that long.
const sliceTime = time.Millisecond

// compile makes a snapshot of the present state, stores it as the target, and returns it.
func (a *agent) compile() *snapshot {
	next := a.present()
	a.snapshots.target.Store(next)
	return next
}

// present returns a snapshot of the records, the accepted Nodes, and the engine's ruleset with merged sets.
func (a *agent) present() *snapshot {
	records := a.records.copies()
	next := &snapshot{endpoints: records.attached}
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
	engine.KeepReports(a.problems.kept())
	switch {
	case a.kernel.lastSync.IsZero(): // all sets, because the kernel may have an earlier agent's sets and must keep them
		next.compiled = engine.Ruleset()
	case a.cluster.hurried:
		next.compiled = engine.Small()
	default:
		began := time.Now()
		next.compiled = engine.Slice(func() bool { return time.Since(began) > sliceTime })
	}
	// If the engine has no work left, the ruleset contains all changes up to the source's last delta.
	if !engine.Changed() {
		next.delta = a.cluster.delta
	}
	next.ruleset = a.merger.Merge(next.compiled, a.kernel.refused)
	return next
}

// class returns the policies that isolate the pod in that direction, or one of agentapi's constants for classes, such
// as ClassOpen.
func (s *snapshot) class(d ruleset.Direction, pod string) string {
	for _, c := range s.ruleset.Classes {
		if c.Direction != d || !slices.Contains(c.Pods, pod) {
			continue
		}
		switch {
		case len(c.Audited) > 0:
			return agentapi.ClassAudited + excerpt.List(c.Audited, ", ")
		case len(c.Policies) == 0:
			return agentapi.ClassOpen
		}
		return excerpt.List(c.Policies, ", ") // the text is shortened; Status.Classes has all policies
	}
	return agentapi.ClassClosed
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
