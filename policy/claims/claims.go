// Package claims decides which claims of Nodes are valid. A claim is an address or a network that a Node states as its
// own. The package doesn't read or change the node on which it runs.
//
// Invariants:
//   - Valid claims don't overlap. No valid claim has a special address, such as a loopback address.
//   - The order of the Nodes doesn't matter. If two Nodes make the same new claim, the older Node's claim is valid.
//   - A valid claim stays valid as long as its Node makes it. The only exception is another node's network that now has
//     an address that this node needs.
//   - An invalid claim is a problem of its Node.
package claims

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// special has the networks of special addresses. Beyond one link, a special address identifies no host (RFC 6890,
// sections 2.2.2 and 2.2.3; RFC 4291, section 2.5.5.2), so no node can use such an address to reach another node or a
// pod.
var special = []struct {
	network netip.Prefix
	what    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/128"), "no address"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 in IPv6"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// maxClaims is how many addresses, and how many networks, are read from one Node at most. Without a limit, one Node
// could fill the routing tables of all nodes. Kubernetes gives a Node at most two addresses and two networks.
const maxClaims = 32

// Terms has the conditions under which Settle finds a claim valid.
type Terms struct {
	// Self is this node's name. It is empty if weir makes no routes or tunnels between nodes.
	Self string
	// Within has the networks in which every podCIDR must be (--cluster-cidr). If it is empty, every network is
	// allowed.
	Within []netip.Prefix
	// Local has addresses that this node needs, sorted. Another node's network that contains one of them is invalid.
	Local []UnderlayAddress
	// Before is the result of the last call of Settle.
	Before []policy.Node
}

// UnderlayAddress is an address of this node in the underlay, or of a router on this node's routes.
type UnderlayAddress struct {
	Address netip.Addr
	What    string // what the address is, for messages
}

// Settle decides which claims of Nodes are valid. It returns the Nodes with only their valid claims, the oldest Node
// first, and a problem for each invalid claim. If all claims were valid, a forged Node could redirect other nodes'
// traffic, or give a pod the rights of another pod.
//
// A claim is invalid if
//
//   - it is a special address, or a network that contains one
//   - it overlaps a valid claim
//   - it is a network, Within isn't empty, and no network in Within contains it
//   - it is another node's network, and contains an address in Local.
//
// If two Nodes make the same new claim, the older Node's claim is valid. A Node without a creation time counts as the
// youngest. Among Nodes of the same age, Self comes first, and then the order of names decides.
//
// A valid claim (Before) stays valid even if an older Node now makes the same claim. So an edit of one Node can't end
// the claim of another Node. The claim ends if its Node is deleted, is replaced, or no longer makes the claim. The
// claim of another node's network also ends if the network now contains an address in Local.
//
// If Self isn't empty, Settle also returns a problem for a Node without an address or without a network.
func Settle(nodes []policy.Node, t Terms) ([]policy.Node, []ruleset.Problem) {
	self, within := t.Self, t.Within
	s := settler{exact: map[netip.Prefix]string{}, inside: map[netip.Prefix]claim{}, self: self, local: t.Local}
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i] = s.bound(nodes[i])
	}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			s.addLength(hostPrefix(a))
		}
		for _, p := range n.PodCIDRs {
			s.addLength(p)
		}
	}
	settled := slices.SortedFunc(slices.Values(nodes), func(a, b policy.Node) int {
		return cmp.Or(
			compareAge(a.Created, b.Created), first(a.Name == self, b.Name == self), strings.Compare(a.Name, b.Name))
	})
	s.goOn(settled, t.Before)
	for i := range settled {
		n := &settled[i]
		report := func(field, why string) {
			s.problems = append(s.problems, ruleset.Problem{Object: "Node " + n.Name, Field: field, Message: why})
		}
		var addresses []netip.Addr
		for _, a := range n.Addresses {
			why := s.refuses(n.Name, hostPrefix(a))
			switch {
			case slices.Contains(addresses, a):
			case s.goingOn[goingOn{n.Name, hostPrefix(a), false}]:
				addresses = append(addresses, a)
			case why != "":
				report("status.addresses", fmt.Sprintf("the InternalIP %s doesn't count: %s", a, why))
			default:
				addresses = append(addresses, a)
				s.keep(n.Name, hostPrefix(a))
			}
		}
		var networks []netip.Prefix
		for _, p := range n.PodCIDRs {
			if s.goingOn[goingOn{n.Name, p, true}] && !slices.Contains(networks, p) {
				networks = append(networks, p)
				continue
			}
			why := s.refuses(n.Name, p)
			if why == "" && n.Name != self {
				why = s.localIn(p)
			}
			valid := func(w netip.Prefix) bool { return contains(w, p) }
			if why == "" && len(within) > 0 && !slices.ContainsFunc(within, valid) {
				why = "it isn't within the cluster's networks (--cluster-cidr)"
			}
			if why != "" {
				report("spec.podCIDRs", fmt.Sprintf("the network %s doesn't count: %s", p, why))
				continue
			}
			networks = append(networks, p)
			s.keep(n.Name, p)
		}
		if len(n.Addresses) == 0 && self != "" {
			report("status.addresses", "there is no InternalIP; "+consequence(n.Name == self))
		}
		if len(n.PodCIDRs) == 0 && self != "" {
			report("spec.podCIDRs", "there is no network; "+consequence(n.Name == self))
		}
		n.Addresses, n.PodCIDRs = addresses, networks
	}
	return settled, s.problems
}

func consequence(self bool) string {
	if self {
		return "this node can't have pods nor reach those of others"
	}
	return "its pods can't be reached"
}

func compareAge(a, b time.Time) int { return cmp.Or(first(!a.IsZero(), !b.IsZero()), a.Compare(b)) }

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func contains(network, p netip.Prefix) bool {
	return network.Bits() <= p.Bits() && network.Contains(p.Addr())
}

type claim struct {
	node    string
	network netip.Prefix
}

func (c claim) String() string {
	if c.network.IsSingleIP() {
		return fmt.Sprintf("the address %s of node %s", c.network.Addr(), c.node)
	}
	return fmt.Sprintf("%s of node %s", c.network, c.node)
}

type settler struct {
	four     [33]bool                // lengths of the IPv4 prefixes that Nodes claim
	six      [129]bool               // lengths of the IPv6 prefixes that Nodes claim
	exact    map[netip.Prefix]string // the valid claims, with their Nodes' names
	inside   map[netip.Prefix]claim  // networks that contain a valid claim, with the first such claim
	goingOn  map[goingOn]bool
	self     string
	local    []UnderlayAddress
	problems []ruleset.Problem
}

type goingOn struct {
	node    string
	claim   netip.Prefix
	network bool
}

func (s *settler) bound(n policy.Node) policy.Node {
	tell := func(field, what string, count int) {
		why := fmt.Sprintf("there are %d %s; only the first %d are looked at", count, what, maxClaims)
		s.problems = append(s.problems, ruleset.Problem{Object: "Node " + n.Name, Field: field, Message: why})
	}
	if count := len(n.Addresses); count > maxClaims {
		tell("status.addresses", "InternalIPs", count)
		n.Addresses = n.Addresses[:maxClaims:maxClaims]
	}
	if count := len(n.PodCIDRs); count > maxClaims {
		tell("spec.podCIDRs", "networks", count)
		n.PodCIDRs = n.PodCIDRs[:maxClaims:maxClaims]
	}
	return n
}

// goOn keeps the claims that were valid before, if their Nodes still make them. It leaves out another node's network
// that now contains an address in Local. goOn must run before new claims are checked: of two claims that overlap, the
// claim that is kept first is valid.
func (s *settler) goOn(nodes, before []policy.Node) {
	s.goingOn = map[goingOn]bool{}
	was := make(map[string]policy.Node, len(before))
	for _, n := range before {
		was[n.Name] = n
	}
	for _, n := range nodes {
		w, ok := was[n.Name]
		if !ok || !w.Created.Equal(n.Created) { // a new Node, even if an old Node had this name
			continue
		}
		for _, a := range n.Addresses {
			if slices.Contains(w.Addresses, a) && s.refuses(n.Name, hostPrefix(a)) == "" {
				s.keep(n.Name, hostPrefix(a))
				s.goingOn[goingOn{n.Name, hostPrefix(a), false}] = true
			}
		}
		for _, p := range n.PodCIDRs {
			if slices.Contains(w.PodCIDRs, p) && s.refuses(n.Name, p) == "" && (n.Name == s.self || s.localIn(p) == "") {
				s.keep(n.Name, p)
				s.goingOn[goingOn{n.Name, p, true}] = true
			}
		}
	}
}

func (s *settler) localIn(p netip.Prefix) string {
	compare := func(l UnderlayAddress, a netip.Addr) int { return l.Address.Compare(a) }
	i, _ := slices.BinarySearchFunc(s.local, p.Masked().Addr(), compare)
	if i == len(s.local) || !p.Contains(s.local[i].Address) {
		return ""
	}
	return fmt.Sprintf("it contains %s, %s", s.local[i].Address, s.local[i].What)
}

func (s *settler) lengths(p netip.Prefix) []bool {
	if p.Addr().Is4() {
		return s.four[:]
	}
	return s.six[:]
}

func (s *settler) addLength(p netip.Prefix) { s.lengths(p)[p.Bits()] = true }

func (s *settler) refuses(node string, p netip.Prefix) string {
	for _, x := range special {
		if x.network.Overlaps(p) {
			if p.IsSingleIP() {
				return "such addresses are special (" + x.what + ")"
			}
			return fmt.Sprintf("it contains special addresses (%s, %s)", x.network, x.what)
		}
	}
	other, overlaps := s.inside[p]
	for bits, claimed := range s.lengths(p)[:p.Bits()] {
		if !claimed || overlaps {
			continue
		}
		network := netip.PrefixFrom(p.Addr(), bits).Masked()
		if owner, ok := s.exact[network]; ok {
			other, overlaps = claim{owner, network}, true
		}
	}
	switch {
	case !overlaps:
		return ""
	case other.node == node:
		return fmt.Sprintf("it overlaps %s itself", other)
	case other.network == p:
		return fmt.Sprintf("node %s has it, and was there before", other.node)
	}
	return fmt.Sprintf("it overlaps %s, which was there before", other)
}

func (s *settler) keep(node string, p netip.Prefix) {
	s.exact[p] = node
	for bits, claimed := range s.lengths(p)[:p.Bits()+1] {
		if !claimed {
			continue
		}
		network := netip.PrefixFrom(p.Addr(), bits).Masked()
		if _, ok := s.inside[network]; !ok {
			s.inside[network] = claim{node, p}
		}
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
