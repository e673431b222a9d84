package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// LinkOf returns the link through which an endpoint's packets come to the node. If the link is unknown, LinkOf returns
// the zero value. It does the same if the link's name has a character that link names in rules can't have.
func LinkOf(e Endpoint) ruleset.Link {
	switch {
	case !e.Chained:
		return ruleset.Link{In: conf.Bridge}
	case strings.ContainsFunc(e.BridgeIf+e.HostIf, odd):
		return ruleset.Link{}
	case e.BridgeIf != "":
		return ruleset.Link{In: e.BridgeIf, Port: e.HostIf}
	}
	return ruleset.Link{In: e.HostIf}
}

// odd reports whether the character is forbidden in the link names of rules. Letters, digits and -._@ are allowed.
func odd(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("-._@", r)
}

type links struct {
	neighbours []ruleset.Rule // accept neighbour discovery, before policies are checked
	senders    []ruleset.Rule // lead packets with forged sources to the chain that drops them
	self       []ruleset.Rule // lead packets from a pod to itself to the chain that accepts them
	loopback   []ruleset.Rule // drop packets to the node's loopback addresses
	masquerade []ruleset.Rule // exempt chained pods' packets from masquerading
}

type chainedPods struct {
	addresses []ruleset.Entry // entries of the set weir-chained: the addresses of all chained pods
	own       []ruleset.Entry // entries of weir-links: 0.0.0.0/0 or ::/0 for each link that belongs to a single pod
	senders   []ruleset.Entry // entries of weir-senders: the pod's addresses for each link that belongs to a single pod
	ports     []ruleset.Rule  // match packets from a pod's bridge port, with the pod's address as the source
	foreign   []ruleset.Rule  // match packets from a pod's bridge port, with any source
	bridges   map[string]bool // other plugins' bridges with pods' links as ports
	// linkLocal matches packets from a pod's bridge port, even if the pod has no address of the family. onBridges has the
	// bridges of these ports.
	linkLocal []ruleset.Rule
	onBridges map[string]bool
}

func (c *common) chainedPods() chainedPods {
	p := chainedPods{bridges: map[string]bool{}, onBridges: map[string]bool{}}
	for _, e := range c.endpoints {
		if !e.Chained {
			continue
		}
		link, words := LinkOf(e), e.Pod.String()
		has := false
		for _, a := range e.Addresses {
			if conf.FamilyOf(a.Addr) != c.family {
				continue
			}
			has = true
			address := hostPrefix(a.Addr)
			p.addresses = append(p.addresses, ruleset.Entry{Element: ruleset.Element{Prefix: address}, Comment: words})
			switch {
			case link.Port != "":
				p.ports = append(p.ports, ruleset.Rule{
					Src: address, InPort: link.Port, Comment: "weir: from " + words + " itself", Action: ruleset.Return,
				})
			case link.In != "":
				p.senders = append(p.senders,
					ruleset.Entry{Element: ruleset.Element{Prefix: address, Link: link.In}, Comment: words})
			}
		}
		if link.Port != "" {
			p.onBridges[link.In] = true
			p.linkLocal = append(p.linkLocal, ruleset.Rule{
				InPort: link.Port, Comment: "weir: " + words + " from or to a link-local address",
				Action: ruleset.GoTo, To: conf.ForgedChain,
			})
		}
		switch {
		case link.Port != "" && has:
			p.bridges[link.In] = true
			p.foreign = append(p.foreign, ruleset.Rule{
				InPort: link.Port, Comment: "weir: an ICMP error of " + words + " under a foreign name",
				Action: ruleset.GoTo, To: conf.ForgedChain,
			})
		case link.Port == "" && link.In != "": // also without an address of the family: then every source is forged
			any := entry(netip.PrefixFrom(unspecified[c.family], 0), words)
			any.Link = link.In
			p.own = append(p.own, any)
		}
	}
	slices.SortFunc(p.ports, func(a, b ruleset.Rule) int { return a.Src.Addr().Compare(b.Src.Addr()) })
	for _, rules := range [][]ruleset.Rule{p.foreign, p.linkLocal} {
		slices.SortFunc(rules, func(a, b ruleset.Rule) int { return cmp.Compare(a.InPort, b.InPort) })
	}
	return p
}

// links adds the sets and chains for chained pods. It returns the rules that use them, and IPv6's rules for neighbour
// discovery.
//
// A link that the node routes, as with the plugin ptp, belongs to one pod. So a packet from this link is forged if
// its source isn't an address of the pod. A bridge of another plugin has several pods as ports. Each of these ports
// has its own rules, because no set of weir can match bridge ports.
func (c *common) links(evaluate []ruleset.Rule) links {
	pods := c.chainedPods()
	// Pods on a bridge have link-local addresses even if no chained pod has another IPv6 address.
	onlyLinkLocal := c.family == conf.IPv6 && len(pods.linkLocal) > 0
	if len(pods.addresses)+len(pods.own) == 0 && !onlyLinkLocal {
		return links{}
	}
	chainedSet, linksSet := c.family.Set(conf.ChainedSet), c.family.Set(conf.LinksSet)
	sendersSet := c.family.Set(conf.SendersSet)
	c.set(ruleset.Set{
		Name: chainedSet, Kind: ruleset.Addresses, Role: ruleset.Checked, Entries: ruleset.EntriesOf(pods.addresses...),
	})
	c.set(ruleset.Set{
		Name: linksSet, Kind: ruleset.AddressLinks, Role: ruleset.Checked, Entries: ruleset.EntriesOf(pods.own...),
	})
	c.set(ruleset.Set{
		Name: sendersSet, Kind: ruleset.AddressLinks, Role: ruleset.Peers, Entries: ruleset.EntriesOf(pods.senders...),
	})
	c.chain(conf.ForgedChain, dropRest(nil, conf.ForgedChain, "under an address that is not the pod's")...)
	c.chain(conf.SelfChain, slices.Concat([]ruleset.Rule{{
		Sets:    []ruleset.SetMatch{{Name: sendersSet, By: ruleset.SourceLink}},
		Comment: "weir: a pod reaching itself through its Service", Action: ruleset.Return,
	}}, pods.ports, evaluate)...)
	r := links{
		senders: []ruleset.Rule{{
			Sets: []ruleset.SetMatch{
				{Name: linksSet, By: ruleset.SourceLink}, {Name: sendersSet, By: ruleset.SourceLink, Not: true},
			},
			Comment: "weir: from the link of a pod, but under another address",
			Action:  ruleset.GoTo, To: conf.ForgedChain,
		}},
		self: []ruleset.Rule{{
			Shape: ruleset.ToItself, Comment: "weir: to its own sender: a pod itself?", Action: ruleset.GoTo, To: conf.SelfChain,
		}},
		masquerade: []ruleset.Rule{{
			Sets:    []ruleset.SetMatch{{Name: chainedSet, By: ruleset.Source}},
			Comment: "weir: pods whose network another plugin made, and sees to", Action: ruleset.Return,
		}},
		loopback: []ruleset.Rule{toLoopback(c.family, ruleset.Rule{
			Sets: []ruleset.SetMatch{{Name: linksSet, By: ruleset.SourceLink}},
		})},
	}
	if len(pods.bridges) > 0 {
		c.chain(conf.PortsChain, slices.Concat(pods.ports, []ruleset.Rule{
			{
				Sets:    []ruleset.SetMatch{{Name: chainedSet, By: ruleset.Source}},
				Comment: "weir: ICMP under the address of a pod, but not from it",
				Action:  ruleset.GoTo, To: conf.ForgedChain,
			},
			{Shape: ruleset.NoICMPError, Comment: "weir: no error", Action: ruleset.Return},
		}, pods.foreign)...)
	}
	for _, name := range slices.Sorted(maps.Keys(pods.bridges)) {
		r.senders = append(r.senders, ruleset.Rule{
			Proto: icmp(c.family), In: name,
			Comment: "weir: ICMP from a bridge: under its own name?", Action: ruleset.Jump, To: conf.PortsChain,
		})
		r.loopback = append(r.loopback, toLoopback(c.family, ruleset.Rule{In: name}))
	}
	// Only chained pods need neighbour discovery: on weir's own links, neighbour entries are permanent.
	if c.family == conf.IPv6 {
		r.senders = append(r.senders, c.linkLocal(pods)...)
		for _, shape := range []ruleset.Shape{ruleset.Solicitation, ruleset.Advertisement} {
			r.neighbours = append(r.neighbours, ruleset.Rule{
				Proto: ruleset.ICMPv6, Shape: shape, Comment: "weir: hosts on one link find each other", Action: ruleset.Return,
			})
		}
	}
	return r
}

var (
	linkLocal = netip.MustParsePrefix("fe80::/10")
	multicast = netip.MustParsePrefix("ff00::/8")
)

// linkLocal adds the chain that drops link-local packets of pods on other plugins' bridges, and returns the rules
// that lead to the chain. Each pod has a link-local address, but the set of all pods doesn't have this address. So
// policies aren't enforced on link-local packets, and weir drops these packets instead. Rules before this chain have
// accepted neighbour discovery. Multicast passes, because switches and routers need the reports in which pods name
// their multicast groups.
func (c *common) linkLocal(pods chainedPods) (rules []ruleset.Rule) {
	if len(pods.linkLocal) == 0 {
		return nil
	}
	c.chain(conf.LinkLocalChain, slices.Concat([]ruleset.Rule{{
		Dst: multicast, Comment: "weir: multicast", Action: ruleset.Return,
	}}, pods.linkLocal)...)
	for _, name := range slices.Sorted(maps.Keys(pods.onBridges)) {
		for _, r := range []ruleset.Rule{{Src: linkLocal}, {Dst: linkLocal}} {
			r.In, r.Comment = name, "weir: link-local, on a bridge of pods"
			r.Action, r.To = ruleset.Jump, conf.LinkLocalChain
			rules = append(rules, r)
		}
	}
	return rules
}

var unspecified = map[conf.Family]netip.Addr{conf.IPv4: netip.IPv4Unspecified(), conf.IPv6: netip.IPv6Unspecified()}

var loopback = map[conf.Family]netip.Prefix{
	conf.IPv4: netip.MustParsePrefix("127.0.0.0/8"), conf.IPv6: netip.MustParsePrefix("::1/128"),
}

// toLoopback returns a rule that drops packets to the node's loopback addresses. r has the rule's condition on links.
// For IPv4, kubelet has a similar rule (KUBE-FIREWALL; CVE-2020-8558).
//
// If route_localnet isn't set, the kernel itself drops such packets. But portmap sets route_localnet when it adds the
// first hostPort. If another program has translated a packet's destination, the rule doesn't match the packet.
func toLoopback(f conf.Family, r ruleset.Rule) ruleset.Rule {
	r.Dst, r.Track, r.Action, r.To = loopback[f], ruleset.Untranslated, ruleset.GoTo, conf.LoopbackChain
	r.Comment = "weir: no pod reaches the loopback of its node"
	return r
}
