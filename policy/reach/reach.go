// Package reach computes which connections policies allow between pods, and between pods and the world. The result is a
// matrix. The package also computes the difference of two matrices.
//
// A matrix is small because it has groups instead of single pods, addresses and ports. Pods that no policy can tell
// apart are one party. Addresses of the world that no ipBlock separates are one region. Ports are divided only where a
// range of a policy begins or ends. So each pair of parties has one verdict of package verdict for each range of ports.
//
// Invariants:
//   - The package is pure.
//   - A matrix is exact. It leaves out pods with the host's network, and connections on which no policy decides: from a
//     pod to itself, and from a node to its own pods.
//   - Each connection of a matrix is in exactly one of its rows.
package reach

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/verdict"
)

// Matrix says on which ports each party can reach each other party.
type Matrix struct {
	Parties    []Party
	space      *space
	classifier *classifier
	classes    []int
	members    [][]int // indexes in Parties, by class (parties that no rule tells apart)
	between    [][]cell
}

// Rule says what a rule of a policy means for the parties. Subjects are the parties that the policy isolates in the
// rule's direction. Peers are the parties that the rule allows.
type Rule struct {
	Policy string `json:"policy"` // namespace/name
	// Field is the rule's field in the policy, such as "ingress[0]". If the policy has no rules for a direction, Field is
	// "ingress" or "egress".
	Field    string `json:"field"`
	Subjects []int  `json:"subjects"`
	Peers    []int  `json:"peers"`
	Ports    Ports  `json:"ports"`
}

// New returns the matrix of the state. Each party lists the services that lead to its pods.
func New(s policy.State, services []policy.Service) *Matrix {
	u := newUniverse(services, s)
	return u.matrix(0)
}

// Between returns the ports on which party i can reach party j. i and j are indexes in Parties.
func (m *Matrix) Between(i, j int) Reach {
	c := m.between[m.classes[i]][m.classes[j]]
	return m.space.reach(c)
}

// PartyOf returns the index of the party with the address. It returns false if there is no such party.
func (m *Matrix) PartyOf(a netip.Addr) (int, bool) {
	i := slices.IndexFunc(m.Parties, func(p Party) bool { return p.Has(a) })
	return i, i >= 0
}

// Has reports whether the address is one of the party's Addresses, or in one of its Networks.
func (p Party) Has(a netip.Addr) bool {
	return slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) ||
		slices.ContainsFunc(p.Addresses, func(all []netip.Addr) bool { return slices.Contains(all, a) })
}

type universe struct {
	states     []policy.State
	evaluators []*verdict.Evaluator
	space      *space
	parties    []Party
	ends       []partyEnds
	world      *world
	services   []policy.Service
}

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
