// Package ruleset is what a node's packet filter should enforce, as data: sets, chains of rules, and the hooks where
// packets enter the chains. It says what should be; a backend (netfilter/iptables) lowers it to its own words, tables
// and limits, and writes it to the kernel. A Simulator runs packets through a ruleset in memory.
//
// The package links no kernel interface and nothing of Kubernetes, and touches nothing. Its invariants:
//
//   - Sets are ordered by name, chains by family and name, entries by Element.Compare: equal states give equal
//     rulesets.
//   - A set is of one family and holds no entry of another, and no IPv4-mapped IPv6 address (::ffff:0:0/96).
//   - A class's set and chain are named by what the chain's rules say (Identity): new rules are a new chain with a new
//     set, and never change under a set's members.
//   - Each chain that checks packets ends with a rule that drops them or returns; what returns from the chain at a hook
//     goes on.
package ruleset

import (
	"cmp"
	"slices"

	"github.com/weir-net/weir/conf"
)

// Ruleset is what should be in the kernel, and what it was made of.
type Ruleset struct {
	Sets     []Set
	Chains   []Chain
	Classes  []Class
	Problems []Problem
}

// Hook is a place on a packet's way where it enters a chain.
type Hook string

// The hooks. The first two are ahead of everybody else's rules, the others behind them.
const (
	// CheckForwarded has all packets that the node forwards.
	CheckForwarded Hook = "check forwarded packets"
	// CheckToNode has all packets to the node itself.
	CheckToNode Hook = "check packets to the node"
	// AcceptForwarded has forwarded packets that were checked, and that other rules of the node might drop by default.
	AcceptForwarded Hook = "accept forwarded packets"
	// TranslateSource has the first packets of connections that leave the node, and decides under which address.
	TranslateSource Hook = "translate sources"
)

// Chain is a list of rules. The first one that matches a packet and isn't a log decides.
type Chain struct {
	Family conf.Family
	Name   string
	// Hook is where packets enter the chain. It is empty for chains that rules jump or go to; these rules all belong to
	// chains that check packets.
	Hook Hook
	// Comment is what an operator reads beside the way from the hook to the chain.
	Comment string
	Rules   []Rule
}

// Dispatch returns the names of the sets that the chain's rules go by, in the order of the rules: a packet whose pod
// is in several of them goes to the class of the first.
func (c Chain) Dispatch() []string {
	var names []string
	for _, r := range c.Rules {
		for _, m := range r.Sets {
			names = append(names, m.Name)
		}
	}
	return names
}

// Equal reports whether the chains are the same, with the same rules.
func (c Chain) Equal(o Chain) bool {
	return c.Family == o.Family && c.Name == o.Name && c.Hook == o.Hook && c.Comment == o.Comment &&
		slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}

// SortChains sorts chains as a Ruleset has them.
func SortChains(chains []Chain) {
	slices.SortFunc(chains, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name))
	})
}

// Has reports whether the ruleset has chains for the family's packets.
func (r Ruleset) Has(f conf.Family) bool {
	return slices.ContainsFunc(r.Chains, func(c Chain) bool { return c.Family == f })
}

// Chain returns the chain of that family and name.
func (r Ruleset) Chain(f conf.Family, name string) (Chain, bool) {
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Family == f && c.Name == name })
	if i < 0 {
		return Chain{}, false
	}
	return r.Chains[i], true
}

// Direction of traffic, as seen from the pod that a policy selects.
type Direction string

// The directions of networking.k8s.io/v1 policyTypes.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Class is the pods of this node that the same policies isolate in one direction. There is one for each family that
// they have addresses of.
type Class struct {
	Direction Direction
	Policies  []string // none: no policy isolates the pods
	Set       string
	Chain     string
	Pods      []string
}

// Problem is an object, or part of one, that can't be enforced as written. The ruleset drops what it would have
// allowed.
type Problem struct {
	Object  string // kind namespace/name
	Field   string
	Message string
}

// String is one line for a log.
func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }
