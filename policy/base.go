package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// familiesOf returns the families that the node needs rules for. IPv6 is among them if one of the node's pods has an
// IPv6 address, or can get one from the node's podCIDRs. Most nodes have no IPv6 pods, and rules for both families
// would double the cost of each change. Where there are no rules for IPv6, no pod has an IPv6 address, and the guard
// drops all IPv6 packets from pods. IPv4 is always among the families.
func familiesOf(endpoints []Endpoint, self Node) []conf.Family {
	six := func(a netip.Addr) bool { return conf.FamilyOf(a) == conf.IPv6 }
	for _, e := range endpoints {
		if slices.ContainsFunc(e.Addresses, func(a Address) bool { return six(a.Addr) }) {
			return conf.Families[:]
		}
	}
	if slices.ContainsFunc(self.PodCIDRs, func(p netip.Prefix) bool { return six(p.Addr()) }) {
		return conf.Families[:]
	}
	return conf.Families[:1]
}

// common has the sets, chains and rules that don't depend on any policy, and what they are compiled from.
type common struct {
	families  []conf.Family
	endpoints []Endpoint // in the order of their IDs
	// networks are the networks of all Nodes' pods.
	networks [len(conf.Families)]ruleset.Entries
	sheet    // of all families
}

func (c *common) compile() {
	for _, c.family = range c.families {
		c.base()
	}
}

func (c *common) base() {
	c.podSets()
	c.dropChains()
	fromPods := ruleset.SetMatch{Name: c.family.Set(conf.PodsSet), By: ruleset.Source}
	toPods := ruleset.SetMatch{Name: c.family.Set(conf.PodsSet), By: ruleset.Destination}
	fromPod := ruleset.Rule{
		Sets: []ruleset.SetMatch{fromPods}, Comment: "weir: from a pod: its egress policies",
		Action: ruleset.Jump, To: egress.dispatch,
	}
	toPod := ruleset.Rule{
		Sets: []ruleset.SetMatch{toPods}, Comment: "weir: to a pod: its ingress policies",
		Action: ruleset.Jump, To: ingress.dispatch,
	}
	// All that comes from or goes to weir's bridge is checked: the chains that send packets to classes drop what is no
	// pod's. So these packets need no look-up in the set of all pods. Nearly every first packet matches these rules, and
	// the kernel takes longer to skip a comment than to compare a link: they have none.
	toBridge := ruleset.Rule{Out: conf.Bridge, Action: ruleset.GoTo, To: ingress.dispatch}
	c.chain(conf.BridgeChain,
		ruleset.Rule{
			Shape: ruleset.ToItself, Comment: "weir: a pod reaching itself through its Service", Action: ruleset.Return,
		},
		ruleset.Rule{Action: ruleset.Jump, To: egress.dispatch}, toBridge, toPod)
	other := c.links([]ruleset.Rule{fromPod, toPod})
	ahead := c.ahead(other)
	c.hook(ruleset.CheckForwarded, conf.ForwardChain, "weir: what no policy lets through to or from a pod is dropped",
		ahead,
		[]ruleset.Rule{{In: conf.Bridge, Action: ruleset.GoTo, To: conf.BridgeChain}},
		other.self, []ruleset.Rule{fromPod, toBridge, toPod})
	// This hook has the packets that a pod sends to its own node. weir checks no packets from the node to its pods, so
	// kubelet's probes always pass.
	c.hook(ruleset.CheckToNode, conf.InputChain, "weir: egress policies hold towards this node too",
		ahead, []ruleset.Rule{toLoopback(c.family, ruleset.Rule{In: conf.Bridge})}, other.loopback,
		[]ruleset.Rule{
			{In: conf.Bridge, Action: ruleset.GoTo, To: egress.dispatch}, fromPod,
		})
	// The packets at this hook were checked at an earlier hook. These rules have no comment here: the backend writes one
	// that names the earlier hook.
	c.hook(ruleset.AcceptForwarded, conf.AcceptChain, "weir: no other default drops what policy let through",
		[]ruleset.Rule{
			{In: conf.Bridge, Action: ruleset.Accept}, // comparing a link is quicker than a look-up
			{Out: conf.Bridge, Action: ruleset.Accept},
			{Sets: []ruleset.SetMatch{fromPods}, Action: ruleset.Accept},
			{Sets: []ruleset.SetMatch{toPods}, Action: ruleset.Accept},
		})
	elsewhere := ruleset.SetMatch{Name: c.family.Set(conf.NetworksSet), By: ruleset.Destination, Not: true}
	c.hook(ruleset.TranslateSource, conf.PostroutingChain, "weir: the way of pods to the outside",
		other.masquerade, c.global(), []ruleset.Rule{{
			Sets:    []ruleset.SetMatch{fromPods, elsewhere},
			Comment: "weir: pods reach the world beyond their networks as their node", Action: ruleset.Masquerade,
		}})
}

// dropChains adds the chains that log and drop every packet, one for each reason. A rule leads to such a chain in place
// of dropping the packet: two rules, one that logs and one that drops, would compare each other packet twice.
func (c *common) dropChains() {
	for _, of := range []struct{ name, why string }{
		{conf.CutChain, "connections cut by a later change of policy"},
		{conf.MidstreamChain, "a TCP connection begins with its first packet"},
		{conf.NoPodChain, "from or to the bridge, but from or to no pod"},
		{conf.LoopbackChain, "no pod reaches the loopback of its node"},
	} {
		c.chain(of.name, dropRest(nil, of.name, of.why)...)
	}
}

// nodeNetworks returns the podCIDRs of all Nodes as entries of a set, by family.
func nodeNetworks(nodes []Node) (networks [len(conf.Families)]ruleset.Entries) {
	var all [len(conf.Families)][]ruleset.Entry
	for _, n := range nodes {
		for _, p := range n.PodCIDRs {
			f := conf.FamilyOf(p.Addr())
			all[f] = append(all[f], entry(p, "pods of node "+n.Name))
		}
	}
	for f := range all {
		networks[f] = ruleset.EntriesOf(all[f]...)
	}
	return networks
}

// podSets compiles two sets: the addresses of this node's pods, and the networks of the pods of all nodes, with the
// subnets of this node's endpoints.
func (c *common) podSets() {
	var pods []ruleset.Entry
	networks := c.networks[c.family]
	for _, e := range c.endpoints {
		for _, a := range e.Addresses {
			if conf.FamilyOf(a.Addr) != c.family {
				continue
			}
			pods = append(pods, entry(hostPrefix(a.Addr), e.Pod.String()))
			if subnet := entry(a.Subnet, "pods of this node"); !has(networks, subnet.Element) {
				networks = networks.With(subnet)
			}
		}
	}
	c.set(ruleset.Set{
		Name: c.family.Set(conf.PodsSet), Kind: ruleset.Addresses, Role: ruleset.Attached,
		Entries: ruleset.EntriesOf(pods...),
	})
	c.set(ruleset.Set{
		Name: c.family.Set(conf.NetworksSet), Kind: ruleset.Networks, Role: ruleset.Checked, Entries: networks,
	})
}

func has(entries ruleset.Entries, e ruleset.Element) bool {
	_, ok := entries.Get(e)
	return ok
}

// ahead returns the rules that come before the rules that send packets to classes. Packets of established connections
// leave the chain at these rules, and packets of cut connections are dropped. ICMP errors about connections leave the
// chain after a rule has checked those from pods. Before the rules for ICMP are those for the links of chained
// attachments.
func (c *common) ahead(other links) []ruleset.Rule {
	established := ruleset.Rule{
		Track: ruleset.Established, Comment: "weir: connections that were let through", Action: ruleset.Return,
	}
	cut := ruleset.Rule{
		Track: ruleset.Cut, Comment: "weir: connections cut by a later change of policy",
		Action: ruleset.GoTo, To: conf.CutChain,
	}
	icmpFromPods, related := c.icmpErrors()
	return slices.Concat([]ruleset.Rule{established, cut}, other.neighbours, other.senders,
		[]ruleset.Rule{icmpFromPods, related})
}

// icmpErrors adds the chain that checks ICMP errors from pods, and returns two rules for ICMP.
//
// The rule icmpFromPods sends all ICMP packets from pods to that chain, which drops the errors about packets of others.
// Connection tracking relates an error to a connection by the packet inside the error, and ignores the error's sender.
// Without this check, a pod could end or slow down connections of others, or send data as part of such a connection. An
// honest error from a pod answers a packet that came to the pod. The rule also matches errors that belong to no
// connection that the kernel knows: the packets of the tunnel between nodes aren't tracked, and a forged error could
// make the node send smaller packets through the tunnel.
//
// At the rule related, errors that connection tracking relates to a connection leave the chain without a further
// check. Any router on the connection's path may send such an error, and the kernel can't tell routers from other
// senders. An error without a connection is checked like any other packet.
//
// Related packets of other protocols begin connections that another connection has announced to a helper of connection
// tracking (FTP's data). They are checked like any first packet: policies don't mention announcements, and some helpers
// accept announcements about addresses that are not the pod's.
func (c *common) icmpErrors() (icmpFromPods, related ruleset.Rule) {
	proto := icmp(c.family)
	c.chain(conf.ErrorsChain, dropRest([]ruleset.Rule{{
		Shape: ruleset.HonestICMP, Comment: "weir: no error, or about a packet to the pod", Action: ruleset.Return,
	}}, conf.ErrorsChain, "an ICMP error about packets of others")...)
	from := []ruleset.SetMatch{{Name: c.family.Set(conf.PodsSet), By: ruleset.Source}}
	icmpFromPods = ruleset.Rule{
		Proto: proto, Sets: from, Comment: "weir: ICMP from a pod: are its errors about its own packets?",
		Action: ruleset.Jump, To: conf.ErrorsChain,
	}
	related = ruleset.Rule{
		Proto: proto, Track: ruleset.Related, Comment: "weir: ICMP errors about connections", Action: ruleset.Return,
	}
	return icmpFromPods, related
}

// global returns the rules that keep pods' global IPv6 addresses (2000::/3, RFC 4291) from being masqueraded. Clusters
// assign such addresses so that other hosts see them (kops: "CNIs must not masquerade IPv6 addresses"). Unique local
// addresses (fc00::/7, RFC 4193) are not routed beyond the site, so they are masqueraded. IPv4 has no such rules.
func (c *common) global() []ruleset.Rule {
	if c.family != conf.IPv6 {
		return nil
	}
	return []ruleset.Rule{{
		Src: netip.MustParsePrefix("2000::/3"), Comment: "weir: global addresses stay as they are",
		Action: ruleset.Return,
	}}
}

func icmp(f conf.Family) ruleset.Protocol {
	if f == conf.IPv6 {
		return ruleset.ICMPv6
	}
	return ruleset.ICMP
}
