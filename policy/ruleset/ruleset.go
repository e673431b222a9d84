// Package ruleset describes as data what a node's packet filter should enforce: sets, chains of rules, and the
// hooks where packets enter the chains. A backend, such as netfilter/iptables, writes a ruleset to the kernel. A
// Simulator runs packets through a ruleset in memory. An Index gives the same verdicts in less time.
//
// Invariants:
//   - The package uses no kernel interface and no package of Kubernetes, and has no side effects.
//   - A merged ruleset (Merger) has the verdicts of the ruleset that it was made from.
//   - Sets are ordered by name, chains by family and name, entries by Element.Compare.
//   - A set has addresses of one family, and no IPv4-mapped IPv6 address (::ffff:0:0/96).
//   - The names of a class's set and chain contain a hash of the policies' rules (Identity). So other rules come
//     with another set. The classes "none" and "open" need no hash: their rules are always the same.
//   - Each chain that checks packets ends with a rule that drops the packet, or returns. A packet passes the
//     hook if the hook's chain returns.
package ruleset

import (
	"cmp"
	"slices"

	"github.com/weir-net/weir/conf"
)

// Ruleset has the sets and chains that the kernel should have, and the policies' classes and problems.
type Ruleset struct {
	Sets     []Set
	Chains   []Chain
	Classes  []Class
	Problems []Problem
}

// Hook is a place on a packet's path where the packet enters a chain.
type Hook string

// The first two hooks come before the rules of other programs. The others come after them.
const (
	// CheckForwarded is the hook of all packets that the node forwards.
	CheckForwarded Hook = "check forwarded packets"
	// CheckToNode is the hook of all packets to the node itself.
	CheckToNode Hook = "check packets to the node"
	// AcceptForwarded is the hook of forwarded packets that were checked. Its chain accepts packets that other
	// rules might drop by default.
	AcceptForwarded Hook = "accept forwarded packets"
	// TranslateSource is the hook of the first packets of connections that leave the node.
	TranslateSource Hook = "translate sources"
)

// Chain is a list of rules. A packet meets the rules in order. The Action of a rule says what happens if it matches.
type Chain struct {
	Family conf.Family
	Name   string
	// Hook is where packets enter the chain. It is empty if only rules of other chains lead there.
	Hook    Hook
	Comment string
	Rules   []Rule
}

// Dispatch returns the names of the sets that the chain's rules look up, in order, except those with Not. A pod in
// several of these sets belongs to the class of the first.
func (c Chain) Dispatch() []string {
	var names []string
	for _, r := range c.Rules {
		for _, m := range r.Sets {
			if !m.Not {
				names = append(names, m.Name)
			}
		}
	}
	return names
}

// Equal compares all fields of the chains and of their rules.
func (c Chain) Equal(o Chain) bool {
	return c.Family == o.Family && c.Name == o.Name && c.Hook == o.Hook && c.Comment == o.Comment &&
		slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}

// SortChains sorts chains by family and name, as in a Ruleset.
func SortChains(chains []Chain) {
	slices.SortFunc(chains, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name))
	})
}

// Has reports whether the ruleset has chains for the family's packets.
func (r Ruleset) Has(f conf.Family) bool {
	return slices.ContainsFunc(r.Chains, func(c Chain) bool { return c.Family == f })
}

func (r Ruleset) Chain(f conf.Family, name string) (Chain, bool) {
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Family == f && c.Name == name })
	if i < 0 {
		return Chain{}, false
	}
	return r.Chains[i], true
}

// Direction is the direction of packets, as seen from the pod that a policy selects.
type Direction string

// The directions of networking.k8s.io/v1 policyTypes.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Class has the pods of this node that the same policies isolate in one direction, in one family.
type Class struct {
	Direction Direction
	Policies  []string // empty if no policy isolates the pods
	Audited   []string
	Set       string
	Chain     string
	Pods      []string
}

// Problem describes a part of an object that can't be enforced as written. The packets that it should allow are
// dropped.
type Problem struct {
	Object  string // kind namespace/name
	Field   string
	Message string
}

// SameProblems reports whether the lists share their memory. It may be false for equal lists.
func SameProblems(a, b []Problem) bool { return shared(a, b) }

func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }
