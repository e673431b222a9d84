// Package ruleset describes as data what a node's packet filter should enforce: sets, chains of rules, and the hooks
// where packets enter the chains. A backend, such as netfilter/iptables, writes a ruleset to the kernel. A Simulator
// runs packets through a ruleset in memory. An Index gives the same verdicts in less time.
//
// Invariants:
//   - The package uses neither the kernel nor packages of Kubernetes, and has no side effects.
//   - A merged ruleset (Merger) gives the same verdicts as the ruleset from which it was made.
//   - Sets are ordered by name, chains by family and name, entries by Element.Compare.
//   - A set has addresses of one family, and no IPv4-mapped IPv6 address (::ffff:0:0/96).
//   - The names of a class's set and chain contain a hash of the policies' rules (Identity). So if the rules change, a
//     new set and a new chain replace the old ones. The classes "none" and "open" need no hash: their rules never
//     change.
//   - Each chain that checks packets ends with a rule that drops the packet, or returns. A packet passes the hook if
//     the hook's chain returns.
package ruleset

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Ruleset has the sets and chains that the kernel should have, and the policies' classes and problems.
type Ruleset struct {
	Sets     []Set
	Chains   []Chain
	Classes  []Class
	Problems []Problem
}

// Hook is a place on a packet's way where the packet enters a chain.
type Hook string

// A packet meets the chains of CheckForwarded and CheckToNode before the rules of other programs. It meets the chains
// of the other hooks after those rules.
const (
	// CheckForwarded is the hook of all packets that the node forwards.
	CheckForwarded Hook = "check forwarded packets"
	// CheckToNode is the hook of all packets to the node itself.
	CheckToNode Hook = "check packets to the node"
	// AcceptForwarded is the hook of forwarded packets that have passed weir's check. Its chain accepts these packets,
	// so that a default of other programs' rules (such as the policy DROP of filter FORWARD) doesn't drop them.
	AcceptForwarded Hook = "accept forwarded packets"
	// TranslateSource is the hook of the first packets of connections that leave the node.
	TranslateSource Hook = "translate sources"
)

// Chain is a list of rules, which a packet meets in order. If a rule matches the packet, the rule's action says what
// happens to the packet.
type Chain struct {
	Family conf.Family
	Name   string
	// Hook is where packets enter the chain. It is empty if packets come only from rules of other chains.
	Hook    Hook
	Comment string
	Rules   []Rule
}

// Dispatch returns the names of the sets that the chain's rules look up without Not, in the order of the rules. A pod
// that is in several of these sets belongs to the class of the first of them.
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

// Equal reports whether the chains are equal, including the comments and policies of their rules.
func (c Chain) Equal(o Chain) bool {
	return c.Family == o.Family && c.Name == o.Name && c.Hook == o.Hook && c.Comment == o.Comment &&
		slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}

// Has reports whether the ruleset has chains for packets of the family. Without chains, all of these packets pass.
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

// Direction is the direction of packets, seen from the pod that a policy selects.
type Direction string

// These are the directions in the policyTypes of networking.k8s.io/v1.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Class has the pods of this node that the same policies isolate in one direction, in one family.
type Class struct {
	Direction Direction
	Family    conf.Family // the family of the pods' addresses in the set
	Policies  []string    // empty if no policy isolates the pods
	Audited   []string
	Set       string
	Chain     string
	Pods      []string
}

// Problem describes a part of an object that can't be enforced as it is written. Packets that this part should allow
// are dropped.
type Problem struct {
	Object  string // KIND NAMESPACE/NAME
	Field   string
	Message string
}

const policyKind = "NetworkPolicy "

// ProblemOfPolicy returns a problem of a NetworkPolicy. The policy's name is NAMESPACE/NAME.
func ProblemOfPolicy(policy, field, message string) Problem {
	return Problem{Object: policyKind + policy, Field: field, Message: message}
}

// Policy returns the name of the policy, NAMESPACE/NAME. ok is false if the object isn't a NetworkPolicy.
func (p Problem) Policy() (name string, ok bool) { return strings.CutPrefix(p.Object, policyKind) }

// SameProblems reports whether the lists share their memory. It may return false for equal lists.
func SameProblems(a, b []Problem) bool { return shared(a, b) }

func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }
