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
		pods := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return six(p.Addr()) })
		tunnels := state.Overlay && len(n.Addresses) > 0 && six(n.Addresses[0])
		if pods || tunnels {
			return conf.Families[:]
		}
	}
	return conf.Families[:1]
}

// base is what doesn't depend on any policy.
func (c *compiler) base(state State) {
	var pods, chained []Entry
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
			if e.Chained {
				chained = append(chained, Entry{Element{Prefix: hostPrefix(a.Addr)}, e.Pod.String()})
			}
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
	self := map[conf.Family]Self{conf.IPv4: SelfIPv4, conf.IPv6: SelfIPv6}[c.family]
	established := Rule{Track: Established, Comment: "weir: connections that were let through", Target: Return}
	cut := Rule{Track: Cut, Comment: "weir: connections cut by a later change of policy", Target: Drop}
	fromPod := Rule{Sets: []SetMatch{from}, Comment: "weir: from a pod: its egress policies", Target: JumpTo, To: egress.dispatch}
	stranger := Rule{In: conf.Bridge, Sets: []SetMatch{noPodFrom}, Comment: "weir: from the bridge, but from no pod", Target: Drop}

	masquerade := []Rule{{
		Sets:    []SetMatch{from, {networksSet, "dst", true}},
		Comment: "weir: pods reach the world beyond their networks as their node", Target: Masquerade,
	}}
	// Pods whose links weir makes know their neighbours from the start, and no others.
	var neighbours []Rule
	if len(chained) > 0 {
		name := c.family.Set(ChainedSet)
		c.set(Set{Name: name, Type: HashIP, Role: Judged, Entries: chained})
		masquerade = append([]Rule{{
			Sets: []SetMatch{{name, "src", false}}, Comment: "weir: pods whose network another plugin made, and sees to", Target: Return,
		}}, masquerade...)
		if c.family == conf.IPv6 {
			neighbours = []Rule{
				{Proto: icmpv6, Track: Solicitation, Comment: "weir: hosts on one link find each other", Target: Return},
				{Proto: icmpv6, Track: Advertisement, Comment: "weir: hosts on one link find each other", Target: Return},
			}
		}
	}
	toTunnel, intoTunnel := c.tunnel(state)
	c.chain("mangle", forwardChain, slices.Concat([]Rule{established, cut}, toTunnel, neighbours, []Rule{
		{In: conf.Bridge, Self: self, Comment: "weir: a pod reaching itself through its Service", Target: Return},
		fromPod, stranger,
		{Sets: []SetMatch{to}, Comment: "weir: to a pod: its ingress policies", Target: JumpTo, To: ingress.dispatch},
		{Out: conf.Bridge, Sets: []SetMatch{noPodTo}, Comment: "weir: to the bridge, but to no pod", Target: Drop},
	})...)
	// What a pod sends to its own node. What the node sends to its pods isn't judged: kubelet's probes always pass.
	c.chain("mangle", inputChain, slices.Concat(intoTunnel, []Rule{established, cut}, neighbours, []Rule{fromPod, stranger})...)
	c.chain("filter", acceptChain,
		Rule{Sets: []SetMatch{from}, Comment: "weir: judged in the mangle table", Target: Accept},
		Rule{Sets: []SetMatch{to}, Comment: "weir: judged in the mangle table", Target: Accept},
	)
	c.chain("nat", postroutingChain, masquerade...)
	jump := func(table, chain string, first bool, to, comment string) {
		c.out.Jumps = append(c.out.Jumps, Jump{c.family, table, chain, first, Rule{Comment: comment, Target: JumpTo, To: to}})
	}
	jump("mangle", "FORWARD", true, forwardChain, "weir: what no policy lets through to or from a pod is dropped")
	jump("mangle", "INPUT", true, inputChain, "weir: egress policies hold towards this node too")
	jump("filter", "FORWARD", false, acceptChain, "weir: no other default drops what policy let through")
	jump("nat", "POSTROUTING", false, postroutingChain, "weir: the way of pods to the outside")
}

// tunnel are the rules that guard the overlay's port. What a pod sends to that port of a node would be masqueraded, look
// like the node's own tunnel packet, and carry a forged sender past every policy. Which addresses other nodes have isn't
// known: a Node may be too new to be heard of here, and have addresses that aren't its InternalIPs. So pods send to that
// port of other pods only, everything else being what is masqueraded, and of no node even if some Node's podCIDRs claim
// its address. And a node takes tunnel packets that come from and to nodes' InternalIPs only, whatever other nodes let
// out: these rules stand before the established one, because a tunnel's packets are no connection that was ever judged.
func (c *compiler) tunnel(state State) (forward, input []Rule) {
	if !state.Overlay {
		return nil, nil
	}
	var nodes []Entry
	for _, n := range state.Nodes {
		for _, a := range n.Addresses {
			if conf.FamilyOf(a) == c.family {
				nodes = append(nodes, Entry{Element{Prefix: hostPrefix(a)}, "node " + n.Name})
			}
		}
	}
	podsSet, networksSet, nodesSet := c.family.Set(PodsSet), c.family.Set(NetworksSet), c.family.Set(NodesSet)
	c.set(Set{Name: nodesSet, Type: HashIP, Role: Peers, Entries: nodes})
	tunnel := func(comment string, sets ...SetMatch) Rule {
		return Rule{Proto: UDP, Ports: []PortRange{{conf.OverlayPort, conf.OverlayPort}}, Sets: sets, Comment: comment, Target: Drop}
	}
	forward = []Rule{
		tunnel("weir: pods send nothing to the tunnels' port beyond their networks", SetMatch{podsSet, "src", false}, SetMatch{networksSet, "dst", true}),
		tunnel("weir: pods send nothing into the tunnels between nodes", SetMatch{podsSet, "src", false}, SetMatch{nodesSet, "dst", false}),
	}
	input = []Rule{
		tunnel("weir: tunnel packets come from nodes only", SetMatch{nodesSet, "src", true}),
		tunnel("weir: tunnel packets come to the addresses that nodes know of each other", SetMatch{nodesSet, "dst", true}),
	}
	return forward, input
}
