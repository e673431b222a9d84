package agent

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// snapshot is one immutable view of the node: a state, and the ruleset compiled from it. Nothing that it points to
// changes, so any goroutine may read it.
type snapshot struct {
	// revision counts the snapshots of this agent from 1; the empty first snapshot has 0.
	revision uint64
	state    policy.State
	ruleset  ruleset.Ruleset
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

// compile compiles the state and makes the result the target.
func (s *snapshots) compile(state policy.State) *snapshot {
	next := &snapshot{s.target.Load().revision + 1, state, policy.Compile(state)}
	s.target.Store(next)
	return next
}

// class returns the names of the policies that isolate the pod in that direction. It returns classOpen if no policy
// isolates the pod, and classClosed if the pod is in no class.
func (s *snapshot) class(d ruleset.Direction, pod string) string {
	for _, c := range s.ruleset.Classes {
		if c.Direction != d || !slices.Contains(c.Pods, pod) {
			continue
		}
		if len(c.Policies) == 0 {
			return classOpen
		}
		return strings.Join(c.Policies, ", ")
	}
	return classClosed
}

// state returns everything that a ruleset is compiled from.
func (a *agent) state() policy.State {
	s := policy.State{Parsed: a.cluster.parsed, Refused: a.kernel.refused, Node: a.Node.Name}
	if a.cluster.objects != nil {
		s.Objects = *a.cluster.objects
	}
	for _, e := range a.records.attached() {
		s.Endpoints = append(s.Endpoints, policyEndpoint(e))
	}
	return s
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
