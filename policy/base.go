package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/ruleset"
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
	var pods []ruleset.Entry
	networks := map[netip.Prefix]ruleset.Entry{}
	for _, n := range state.Nodes {
		for _, p := range n.PodCIDRs {
			if conf.FamilyOf(p.Addr()) == c.family {
				networks[p] = ruleset.Entry{Element: ruleset.Element{Prefix: p}, Comment: "pods of node " + n.Name}
			}
		}
	}
	for _, e := range state.Endpoints {
		for _, a := range e.Addresses {
			if conf.FamilyOf(a.Addr) != c.family {
				continue
			}
			pods = append(pods, ruleset.Entry{Element: ruleset.Element{Prefix: hostPrefix(a.Addr)}, Comment: e.Pod.String()})
			if _, ok := networks[a.Subnet]; !ok {
				networks[a.Subnet] = ruleset.Entry{Element: ruleset.Element{Prefix: a.Subnet}, Comment: "pods of this node"}
			}
		}
	}
	podsSet, networksSet := c.family.Set(conf.PodsSet), c.family.Set(conf.NetworksSet)
	c.set(ruleset.Set{Name: podsSet, Kind: ruleset.Addresses, Role: ruleset.Attached, Entries: pods})
	c.set(ruleset.Set{Name: networksSet, Kind: ruleset.Networks, Role: ruleset.Checked, Entries: slices.Collect(maps.Values(networks))})

	from, to := ruleset.SetMatch{Name: podsSet, Dir: "src"}, ruleset.SetMatch{Name: podsSet, Dir: "dst"}
	noPodFrom, noPodTo := ruleset.SetMatch{Name: podsSet, Dir: "src", Not: true}, ruleset.SetMatch{Name: podsSet, Dir: "dst", Not: true}
	established := ruleset.Rule{Track: ruleset.Established, Comment: "weir: connections that were let through", Action: ruleset.Return}
	cut := ruleset.Rule{Track: ruleset.Cut, Comment: "weir: connections cut by a later change of policy", Action: ruleset.Drop}
	fromPod := ruleset.Rule{Sets: []ruleset.SetMatch{from}, Comment: "weir: from a pod: its egress policies", Action: ruleset.JumpTo, To: egress.dispatch}
	stranger := ruleset.Rule{In: conf.Bridge, Sets: []ruleset.SetMatch{noPodFrom}, Comment: "weir: from the bridge, but from no pod", Action: ruleset.Drop}

	toPod := ruleset.Rule{Sets: []ruleset.SetMatch{to}, Comment: "weir: to a pod: its ingress policies", Action: ruleset.JumpTo, To: ingress.dispatch}
	// What follows a connection's own packets: errors, whose senders are looked at, and packets of a pod to itself.
	dishonest, related := c.errors()
	other := c.links(state, []ruleset.Rule{fromPod, toPod})
	ahead := slices.Concat([]ruleset.Rule{established, cut}, other.neighbours, other.senders, []ruleset.Rule{dishonest, related})

	c.chain("mangle", conf.ForwardChain, slices.Concat(ahead, []ruleset.Rule{
		{In: conf.Bridge, Program: ruleset.Self[c.family], Comment: "weir: a pod reaching itself through its Service", Action: ruleset.Return},
	}, other.self, []ruleset.Rule{
		fromPod, stranger, toPod,
		{Out: conf.Bridge, Sets: []ruleset.SetMatch{noPodTo}, Comment: "weir: to the bridge, but to no pod", Action: ruleset.Drop},
	})...)
	// What a pod sends to its own node. What the node sends to its pods isn't judged: kubelet's probes always pass.
	c.chain("mangle", conf.InputChain, slices.Concat(ahead, []ruleset.Rule{toLoopback(c.family, ruleset.Rule{In: conf.Bridge})}, other.loopback,
		[]ruleset.Rule{fromPod, stranger})...)
	c.chain("filter", conf.AcceptChain,
		ruleset.Rule{Sets: []ruleset.SetMatch{from}, Comment: "weir: judged in the mangle table", Action: ruleset.Accept},
		ruleset.Rule{Sets: []ruleset.SetMatch{to}, Comment: "weir: judged in the mangle table", Action: ruleset.Accept},
	)
	c.chain("nat", conf.PostroutingChain, slices.Concat(other.masquerade, c.global(), []ruleset.Rule{{
		Sets:    []ruleset.SetMatch{from, {Name: networksSet, Dir: "dst", Not: true}},
		Comment: "weir: pods reach the world beyond their networks as their node", Action: ruleset.Masquerade,
	}})...)
	jump := func(table, chain string, first bool, to, comment string) {
		c.out.Jumps = append(c.out.Jumps, ruleset.Jump{Family: c.family, Table: table, Chain: chain, First: first, Rule: ruleset.Rule{Comment: comment, Action: ruleset.JumpTo, To: to}})
	}
	jump("mangle", "FORWARD", true, conf.ForwardChain, "weir: what no policy lets through to or from a pod is dropped")
	jump("mangle", "INPUT", true, conf.InputChain, "weir: egress policies hold towards this node too")
	jump("filter", "FORWARD", false, conf.AcceptChain, "weir: no other default drops what policy let through")
	jump("nat", "POSTROUTING", false, conf.PostroutingChain, "weir: the way of pods to the outside")
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
func (c *compiler) errors() (dishonest, related ruleset.Rule) {
	proto := ruleset.ErrorProtocol[c.family]
	c.chain("mangle", conf.ErrorsChain,
		ruleset.Rule{Program: ruleset.Honest[c.family], Comment: "weir: no error, or about a packet to the pod", Action: ruleset.Return},
		ruleset.Rule{Comment: "weir: an ICMP error about packets of others", Action: ruleset.Drop},
	)
	from := []ruleset.SetMatch{{Name: c.family.Set(conf.PodsSet), Dir: "src"}}
	dishonest = ruleset.Rule{
		Proto: proto, Sets: from, Comment: "weir: ICMP from a pod: are its errors about its own packets?", Action: ruleset.JumpTo, To: conf.ErrorsChain,
	}
	return dishonest, ruleset.Rule{Proto: proto, Track: ruleset.Related, Comment: "weir: ICMP errors about connections", Action: ruleset.Return}
}

// global are the rules for pods' addresses that the world knows. IPv6's global addresses (2000::/3, RFC 4291) aren't
// masqueraded: there are enough of them, and clusters give them out so that pods are known by them (kops: "CNIs must
// not masquerade IPv6 addresses"). Unique local ones (fc00::/7, RFC 4193) lead nowhere beyond the site, and are.
func (c *compiler) global() []ruleset.Rule {
	if c.family != conf.IPv6 {
		return nil
	}
	return []ruleset.Rule{{Src: netip.MustParsePrefix("2000::/3"), Comment: "weir: global addresses stay as they are", Action: ruleset.Return}}
}
