package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// familiesOf returns IPv4. It also returns IPv6 if a pod or a podCIDR of the node has an IPv6 address, or if strays
// is true: the kernel then has IPv6 addresses of pods that may have no endpoint (State.Strays6). Without IPv6, a
// change of rules costs half as much. IPv6 packets from pods then need no rules, because the guard drops them all.
func familiesOf(endpoints []Endpoint, self Node, strays bool) []conf.Family {
	if strays {
		return conf.Families[:]
	}
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

type common struct {
	families  []conf.Family
	endpoints []Endpoint // ordered by ID
	networks  [len(conf.Families)]ruleset.Entries
	sheet     // the sets and chains of all families
}

func (c *common) compile() {
	for _, c.family = range c.families {
		c.base()
	}
}

// base adds the chains that all pods share. Rules of these chains lead the first packet of a connection to the chains
// egress.dispatch and ingress.dispatch, which compileDispatch fills (dispatch.go). The backend iptables lets some of
// these rules lead to other chains, WEIR-EGRESS-LAST and WEIR-INGRESS-LAST: see lowerAround in
// netfilter/iptables/tree.go.
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
	// Rules that nearly every first packet matches have no comment: in iptables, a comment is one more match. In the
	// other rules, the kernel comes to the comment only if a packet matches all other conditions. Few packets do.
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
	// Only egress policies are checked for packets to the node. Packets from the node to its pods aren't checked, so
	// kubelet's probes always pass.
	c.hook(ruleset.CheckToNode, conf.InputChain, "weir: egress policies hold towards this node too",
		ahead, []ruleset.Rule{toLoopback(c.family, ruleset.Rule{In: conf.Bridge})}, other.loopback,
		[]ruleset.Rule{
			{In: conf.Bridge, Action: ruleset.GoTo, To: egress.dispatch}, fromPod,
		})
	// weir checks a packet at an earlier hook, so only packets that have passed the check meet these rules. In the
	// backend iptables, the rules that look up a set have a comment with the name of the earlier hook's table.
	c.hook(ruleset.AcceptForwarded, conf.AcceptChain, "weir: no other default drops what policy let through",
		[]ruleset.Rule{
			{In: conf.Bridge, Action: ruleset.Accept}, // comparing a link takes less time than a look-up in a set
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

// dropChains adds a chain for each reason to drop packets. Each chain has two rules: one logs packets, and one drops
// them. So for each reason, a packet that passes meets one rule (the rule that leads to the chain) and not two.
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

// icmpErrors adds a chain that drops a pod's ICMP errors about packets that the pod didn't get. Otherwise a pod could
// end connections of other pods: connection tracking doesn't check who sends an error.
//
// The rule icmpFromPods leads all ICMP packets of pods to this chain, even if they belong to no known connection.
// Otherwise a pod could forge an error that makes the node send smaller packets through the tunnel. The rule related
// accepts errors about known connections from all other senders, because any router may send them.
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

// global exempts pods' global IPv6 addresses (2000::/3, RFC 4291) from masquerading, because clusters assign such
// addresses so that other hosts can see them (kops: "CNIs must not masquerade IPv6 addresses").
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
