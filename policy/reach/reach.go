// Package reach computes who can reach whom. A matrix has all connections that the policies allow between pods, and
// between pods and the world. The package also computes the difference of two matrices.
//
// A matrix is exact, not sampled. Pods that no policy can tell apart are one party. The world is divided into
// regions, so that an ipBlock contains all of a region's addresses or none of them. Ports are divided where a
// policy's range begins or ends, and at the number of each named port. So one verdict holds for all connections
// between two parties on one range of ports. The verdicts are those of package verdict.
//
// A matrix leaves out connections that no policy decides: from a pod to itself, and from a node to its own pods. It
// also leaves out pods with the host's network: their connections are those of their node, which is in the world.
package reach

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/verdict"
)

// Matrix says on which ports each party can reach each other one.
type Matrix struct {
	Parties []Party
	space   *space
	kernel  *kernel
	// classes has the class of each party. Parties of one class have the same connections.
	classes []int
	members [][]int // the parties of each class
	between [][]cell
}

// Rule is a rule of a policy, with the parties that it is about.
type Rule struct {
	Policy string `json:"policy"` // namespace/name
	// Field is the policy's field of the rule, such as "ingress[0]". It is "ingress" or "egress" if the policy has no
	// rules for that direction, and so allows nothing.
	Field string `json:"field"`
	// Subjects are the parties that the policy isolates in this direction. Peers are those that the rule means.
	Subjects []int `json:"subjects"`
	Peers    []int `json:"peers"`
	Ports    Ports `json:"ports"`
}

// New returns the matrix of the state. services are those that lead to the state's pods.
func New(s policy.State, services []policy.Service) *Matrix {
	u := newUniverse(services, s)
	return u.matrix(0)
}

// Between returns the ports on which party i can reach party j. The families may have different ports.
func (m *Matrix) Between(i, j int) Reach {
	c := m.between[m.classes[i]][m.classes[j]]
	return m.space.reach(c)
}

// PartyOf returns the party that has the address; false if none has. An unused address in a pods' network has none.
func (m *Matrix) PartyOf(a netip.Addr) (int, bool) {
	i := slices.IndexFunc(m.Parties, func(p Party) bool { return p.Has(a) })
	return i, i >= 0
}

// Has reports whether the address is one of the pods', or in one of the networks.
func (p Party) Has(a netip.Addr) bool {
	return slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) ||
		slices.ContainsFunc(p.Addresses, func(all []netip.Addr) bool { return slices.Contains(all, a) })
}

// universe is what several states have in common: parties, ranges of ports, and regions of the world. No policy
// divides them further.
type universe struct {
	states     []policy.State
	evaluators []*verdict.Evaluator
	space      *space
	parties    []Party
	ends       []partyEnds
	world      *world
	services   []policy.Service
}

// newUniverse returns the universe of the states. Its pods are those of the first state.
func newUniverse(services []policy.Service, states ...policy.State) *universe {
	u := &universe{states: states, services: services, world: newWorld(states)}
	for _, s := range states {
		u.evaluators = append(u.evaluators, verdict.New(s))
	}
	u.space = newSpace(states)
	u.addPods()
	u.addRegions()
	return u
}
