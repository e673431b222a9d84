package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/policy/ruleset"
)

// special are the networks whose addresses belong to no one host beyond its link (RFC 6890, sections 2.2.2 and 2.2.3;
// RFC 4291, section 2.5.5.2): no node has an InternalIP there that others could send to, and no pod an address.
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

// maxClaims is how many addresses, and how many networks, of one Node are looked at: far more than kubelet and
// Kubernetes give a Node (two of each), and so few that one Node can't fill the others' routes and their lists of
// problems.
const maxClaims = 32

// Terms are what Settle goes by beside the Nodes.
type Terms struct {
	// Self is the name of this node; empty if there are no ways between nodes.
	Self string
	// Within are the networks that all Nodes' podCIDRs must lie in (--cluster-cidr). Empty: podCIDRs may be any network.
	Within []netip.Prefix
	// Local are addresses that this node needs, in their order: no other node's network holds one.
	Local []Local
	// Before are the Nodes with what counted of them before.
	Before []Node
}

// Local is an address of the node's own, or of a router of it.
type Local struct {
	Address netip.Addr
	What    string // in words
}

// Settle decides which addresses and networks of Nodes count, and reports the others. Whoever writes Nodes could take
// other nodes' traffic by them, or the place of other nodes' pods in policies; so all that goes by a Node goes by what
// is settled here: routes, tunnels, the senders that tunnels believe, and the addresses that pods are believed to have.
//
// Special addresses don't count; nor does a network that holds a special address or some node's InternalIP, or that
// isn't within one of the networks in Within, if there are any, or another node's that holds an address that this
// node needs itself. Of two Nodes that claim the same, the one that was created first keeps it. Where that doesn't
// tell, the Node named Self comes first, and then the names' order decides. A Node whose age isn't known comes after
// those whose age is. But a claim that counted before goes on counting for as long as the Node makes it: Nodes can be
// edited, and an older one must not take what another has by then.
//
// Where Self isn't empty there are ways between nodes, and a Node without an address or a network is reported too.
//
// The Nodes are returned in that order. Each claim costs a look-up for every length of prefix that some Node claims.
func Settle(nodes []Node, t Terms) ([]Node, []ruleset.Problem) {
	self, within := t.Self, t.Within
	s := settler{exact: map[netip.Prefix]string{}, inside: map[netip.Prefix]claim{}, self: self, local: t.Local}
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i] = s.bound(nodes[i])
	}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			s.note(hostPrefix(a))
		}
		for _, p := range n.PodCIDRs {
			s.note(p)
		}
	}
	settled := slices.SortedFunc(slices.Values(nodes), func(a, b Node) int {
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
				why = s.holdsLocal(p)
			}
			if why == "" && len(within) > 0 && !slices.ContainsFunc(within, func(w netip.Prefix) bool { return holds(w, p) }) {
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

// first puts the one before the other of which that is true.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func holds(network, p netip.Prefix) bool {
	return network.Bits() <= p.Bits() && network.Contains(p.Addr())
}

// claim is a network, or an address as a network of one, that a Node says is its own.
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

// settler keeps the claims that count so that one that overlaps another is found without comparing it with all.
type settler struct {
	four     [33]bool                // the lengths of prefixes that are claimed
	six      [129]bool               // the same of IPv6
	exact    map[netip.Prefix]string // the claims that count, and whose they are
	inside   map[netip.Prefix]claim  // for each claim that counts, the networks of claimed lengths that hold it
	goingOn  map[goingOn]bool
	self     string
	local    []Local
	problems []ruleset.Problem
}

// goingOn is a claim that counted before and still does.
type goingOn struct {
	node    string
	claim   netip.Prefix
	network bool
}

// bound leaves out what is beyond maxClaims, and tells of it.
func (s *settler) bound(n Node) Node {
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

// goOn keeps those claims first that counted before and that the same Node makes still.
func (s *settler) goOn(nodes, before []Node) {
	s.goingOn = map[goingOn]bool{}
	was := make(map[string]Node, len(before))
	for _, n := range before {
		was[n.Name] = n
	}
	for _, n := range nodes {
		w, ok := was[n.Name]
		if !ok || !w.Created.Equal(n.Created) { // another object of the name
			continue
		}
		for _, a := range n.Addresses {
			if slices.Contains(w.Addresses, a) && s.refuses(n.Name, hostPrefix(a)) == "" {
				s.keep(n.Name, hostPrefix(a))
				s.goingOn[goingOn{n.Name, hostPrefix(a), false}] = true
			}
		}
		for _, p := range n.PodCIDRs {
			if slices.Contains(w.PodCIDRs, p) && s.refuses(n.Name, p) == "" && (n.Name == s.self || s.holdsLocal(p) == "") {
				s.keep(n.Name, p)
				s.goingOn[goingOn{n.Name, p, true}] = true
			}
		}
	}
}

// holdsLocal says which address that this node needs is in the network; empty if none is.
func (s *settler) holdsLocal(p netip.Prefix) string {
	compare := func(l Local, a netip.Addr) int { return l.Address.Compare(a) }
	i, _ := slices.BinarySearchFunc(s.local, p.Masked().Addr(), compare)
	if i == len(s.local) || !p.Contains(s.local[i].Address) {
		return ""
	}
	return fmt.Sprintf("it holds %s, %s", s.local[i].Address, s.local[i].What)
}

func (s *settler) lengths(p netip.Prefix) []bool {
	if p.Addr().Is4() {
		return s.four[:]
	}
	return s.six[:]
}

func (s *settler) note(p netip.Prefix) { s.lengths(p)[p.Bits()] = true }

// refuses says why the Node's claim doesn't count; empty if it does.
func (s *settler) refuses(node string, p netip.Prefix) string {
	for _, x := range special {
		if x.network.Overlaps(p) {
			if p.IsSingleIP() {
				return "such addresses are special (" + x.what + ")"
			}
			return fmt.Sprintf("it holds special addresses (%s, %s)", x.network, x.what)
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
