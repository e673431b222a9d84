package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// families that the node needs rules for. Most nodes have no IPv6 pods, and a change shall not cost them twice: until
// one of this node's pods has an IPv6 address, or it may get one, the spoof guard drops all IPv6 of pods'.
func families(state State) []conf.Family {
	six := func(a netip.Addr) bool { return conf.FamilyOf(a) == conf.IPv6 }
	for _, e := range state.Endpoints {
		if slices.ContainsFunc(e.Addresses, func(a endpoint.Address) bool { return six(a.Addr) }) {
			return conf.Families[:]
		}
	}
	for _, n := range state.Nodes {
		if n.Name != state.Node {
			continue
		}
		if slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return six(p.Addr()) }) {
			return conf.Families[:]
		}
	}
	return conf.Families[:1]
}

// base is what doesn't depend on any policy.
func (c *compiler) base(state State) {
	var pods []Entry
	networks := map[netip.Prefix]Entry{}
	for _, n := range state.Nodes {
		for _, p := range n.PodCIDRs {
			if conf.FamilyOf(p.Addr()) == c.family {
				networks[p] = Entry{Element{Prefix: p}, "pods of node " + n.Name}
			}
		}
	}
	for _, e := range state.Endpoints {
		for _, a := range e.Addresses {
			if conf.FamilyOf(a.Addr) != c.family {
				continue
			}
			pods = append(pods, Entry{Element{Prefix: hostPrefix(a.Addr)}, e.Pod.String()})
			if _, ok := networks[a.Subnet]; !ok {
				networks[a.Subnet] = Entry{Element{Prefix: a.Subnet}, "pods of this node"}
			}
		}
	}
	podsSet, networksSet := c.family.Set(PodsSet), c.family.Set(NetworksSet)
	c.set(Set{Name: podsSet, Type: HashIP, Role: Attached, Entries: pods})
	c.set(Set{Name: networksSet, Type: HashNet, Role: Judged, Entries: slices.Collect(maps.Values(networks))})

	from, to := SetMatch{Name: podsSet, Dir: "src"}, SetMatch{Name: podsSet, Dir: "dst"}
	noPodFrom, noPodTo := SetMatch{podsSet, "src", true}, SetMatch{podsSet, "dst", true}
	established := Rule{Track: Established, Comment: "weir: connections that were let through", Target: Return}
	cut := Rule{Track: Cut, Comment: "weir: connections cut by a later change of policy", Target: Drop}
	fromPod := Rule{Sets: []SetMatch{from}, Comment: "weir: from a pod: its egress policies", Target: JumpTo, To: egress.dispatch}
	stranger := Rule{In: conf.Bridge, Sets: []SetMatch{noPodFrom}, Comment: "weir: from the bridge, but from no pod", Target: Drop}

	toPod := Rule{Sets: []SetMatch{to}, Comment: "weir: to a pod: its ingress policies", Target: JumpTo, To: ingress.dispatch}
	// What follows a connection's own packets: errors, whose senders are looked at, and packets of a pod to itself.
	dishonest, related := c.errors()
	other := c.links(state, []Rule{fromPod, toPod})
	ahead := slices.Concat([]Rule{established, cut}, other.neighbours, other.senders, []Rule{dishonest, related})

	c.chain("mangle", forwardChain, slices.Concat(ahead, []Rule{
		{In: conf.Bridge, Program: self[c.family], Comment: "weir: a pod reaching itself through its Service", Target: Return},
	}, other.self, []Rule{
		fromPod, stranger, toPod,
		{Out: conf.Bridge, Sets: []SetMatch{noPodTo}, Comment: "weir: to the bridge, but to no pod", Target: Drop},
	})...)
	// What a pod sends to its own node. What the node sends to its pods isn't judged: kubelet's probes always pass.
	c.chain("mangle", inputChain, slices.Concat(ahead, []Rule{toLoopback(c.family, Rule{In: conf.Bridge})}, other.loopback,
		[]Rule{fromPod, stranger})...)
	c.chain("filter", acceptChain,
		Rule{Sets: []SetMatch{from}, Comment: "weir: judged in the mangle table", Target: Accept},
		Rule{Sets: []SetMatch{to}, Comment: "weir: judged in the mangle table", Target: Accept},
	)
	c.chain("nat", postroutingChain, slices.Concat(other.masquerade, c.global(), []Rule{{
		Sets:    []SetMatch{from, {networksSet, "dst", true}},
		Comment: "weir: pods reach the world beyond their networks as their node", Target: Masquerade,
	}})...)
	jump := func(table, chain string, first bool, to, comment string) {
		c.out.Jumps = append(c.out.Jumps, Jump{c.family, table, chain, first, Rule{Comment: comment, Target: JumpTo, To: to}})
	}
	jump("mangle", "FORWARD", true, forwardChain, "weir: what no policy lets through to or from a pod is dropped")
	jump("mangle", "INPUT", true, inputChain, "weir: egress policies hold towards this node too")
	jump("filter", "FORWARD", false, acceptChain, "weir: no other default drops what policy let through")
	jump("nat", "POSTROUTING", false, postroutingChain, "weir: the way of pods to the outside")
}

// errors are the rules for ICMP errors. Connection tracking relates an error to a connection by the packet inside it,
// whoever sent it: so a pod could end or slow down connections of others, or send data along under the name of one. A
// pod is the end of its connections: its errors answer packets that came to it. Errors from elsewhere come from any
// router on the way, which nobody can tell from others; they are related, or judged as what they are. The first rule
// also holds for errors that are about no connection that the kernel knows, which would be judged as any packet: the
// tunnel between nodes isn't tracked, and a forged error would shrink its packets.
//
// Related packets of other protocols are connections that one of a helper's has announced (FTP's data). Their first
// packet is judged as any: policies know nothing of announcements, and some helpers believe what a pod announces of
// others.
func (c *compiler) errors() (dishonest, related Rule) {
	proto := icmp[c.family]
	c.chain("mangle", errorsChain,
		Rule{Program: honest[c.family], Comment: "weir: no error, or about a packet to the pod", Target: Return},
		Rule{Comment: "weir: an ICMP error about packets of others", Target: Drop},
	)
	from := []SetMatch{{Name: c.family.Set(PodsSet), Dir: "src"}}
	dishonest = Rule{
		Proto: proto, Sets: from, Comment: "weir: ICMP from a pod: are its errors about its own packets?", Target: JumpTo, To: errorsChain,
	}
	return dishonest, Rule{Proto: proto, Track: Related, Comment: "weir: ICMP errors about connections", Target: Return}
}

// global are the rules for pods' addresses that the world knows. IPv6's global addresses (2000::/3, RFC 4291) aren't
// masqueraded: there are enough of them, and clusters give them out so that pods are known by them (kops: "CNIs must
// not masquerade IPv6 addresses"). Unique local ones (fc00::/7, RFC 4193) lead nowhere beyond the site, and are.
func (c *compiler) global() []Rule {
	if c.family != conf.IPv6 {
		return nil
	}
	return []Rule{{Src: netip.MustParsePrefix("2000::/3"), Comment: "weir: global addresses stay as they are", Target: Return}}
}
