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

// LinkOf is the link of an endpoint; empty if it isn't known, or has a name that a rule can't say.
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

// odd holds for characters that a link's name may have, and iptables takes for something else: a + at the end is any
// end.
func odd(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("-._@", r)
}

// links are the rules for pods whose links other plugins made, and the spoof guard doesn't see.
type links struct {
	neighbours []ruleset.Rule // ahead of the rules that send packets to classes
	senders    []ruleset.Rule // drop forged senders
	self       []ruleset.Rule // let a pod reach itself
	loopback   []ruleset.Rule // in INPUT
	masquerade []ruleset.Rule
}

// chainedPods is what the rules state of the pods behind other plugins, in one family.
type chainedPods struct {
	addresses []ruleset.Entry // all of these pods
	own       []ruleset.Entry // all addresses, on each link that belongs to one pod
	senders   []ruleset.Entry // the pod's own addresses on such a link
	ports     []ruleset.Rule  // from a pod's port of a bridge, under the pod's address
	foreign   []ruleset.Rule  // from such a port, under any address
	bridges   map[string]bool // with such ports
}

// chainedPods lists what the rules state of each pod behind another plugin.
func (c *compiler) chainedPods(state State) chainedPods {
	p := chainedPods{bridges: map[string]bool{}}
	for _, e := range state.Endpoints {
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
		switch {
		case link.Port != "" && has:
			p.bridges[link.In] = true
			p.foreign = append(p.foreign, ruleset.Rule{
				InPort: link.Port, Comment: "weir: an ICMP error of " + words + " under a foreign name", Action: ruleset.Drop,
			})
		case link.Port == "" && link.In != "": // of a family that the pod has no address of, all is forged
			any := entry(netip.PrefixFrom(unspecified[c.family], 0), words)
			any.Link = link.In
			p.own = append(p.own, any)
		}
	}
	slices.SortFunc(p.ports, func(a, b ruleset.Rule) int { return a.Src.Addr().Compare(b.Src.Addr()) })
	slices.SortFunc(p.foreign, func(a, b ruleset.Rule) int { return cmp.Compare(a.InPort, b.InPort) })
	return p
}

// links makes the sets, chain and rules for pods behind other plugins, if there are any.
//
// A link that the node routes (ptp) belongs to one pod. So what comes in by it under another address is forged, and
// dropped, as the spoof guard does on weir's own bridge. On a bridge it isn't known who else is there; a pod has a
// port of it, but no set goes by ports (ipset's physdev entries are matched by no rule of iptables). So rules name
// the port of each pod there. They are read by ICMP's packets, whose errors the pod sends under its own addresses
// alone, and by packets whose sender is their receiver.
func (c *compiler) links(state State, judge []ruleset.Rule) links {
	pods := c.chainedPods(state)
	if len(pods.addresses)+len(pods.own) == 0 {
		return links{}
	}
	chainedSet, linksSet := c.family.Set(conf.ChainedSet), c.family.Set(conf.LinksSet)
	sendersSet := c.family.Set(conf.SendersSet)
	c.set(ruleset.Set{Name: chainedSet, Kind: ruleset.Addresses, Role: ruleset.Checked, Entries: pods.addresses})
	c.set(ruleset.Set{Name: linksSet, Kind: ruleset.AddressLinks, Role: ruleset.Checked, Entries: pods.own})
	c.set(ruleset.Set{Name: sendersSet, Kind: ruleset.AddressLinks, Role: ruleset.Peers, Entries: pods.senders})
	c.chain(conf.SelfChain, slices.Concat([]ruleset.Rule{{
		Sets:    []ruleset.SetMatch{{Name: sendersSet, By: ruleset.SourceLink}},
		Comment: "weir: a pod reaching itself through its Service", Action: ruleset.Return,
	}}, pods.ports, judge)...)
	r := links{
		senders: []ruleset.Rule{{
			Sets: []ruleset.SetMatch{
				{Name: linksSet, By: ruleset.SourceLink}, {Name: sendersSet, By: ruleset.SourceLink, Not: true},
			},
			Comment: "weir: from the link of a pod, but under another address", Action: ruleset.Drop,
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
				Comment: "weir: ICMP under the address of a pod, but not from it", Action: ruleset.Drop,
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
	// Pods whose links weir makes know their neighbours from the start, and no others.
	if c.family == conf.IPv6 {
		for _, shape := range []ruleset.Shape{ruleset.Solicitation, ruleset.Advertisement} {
			r.neighbours = append(r.neighbours, ruleset.Rule{
				Proto: ruleset.ICMPv6, Shape: shape, Comment: "weir: hosts on one link find each other", Action: ruleset.Return,
			})
		}
	}
	return r
}

var unspecified = map[conf.Family]netip.Addr{conf.IPv4: netip.IPv4Unspecified(), conf.IPv6: netip.IPv6Unspecified()}

var loopback = map[conf.Family]netip.Prefix{
	conf.IPv4: netip.MustParsePrefix("127.0.0.0/8"), conf.IPv6: netip.MustParsePrefix("::1/128"),
}

// toLoopback drops packets to the node's loopback addresses from the links that the rule means. The kernel drops
// them too, until somebody sets route_localnet, as portmap does with the first hostPort; what claims to come from a
// loopback address it drops in any case. A rule of somebody's that translates a destination to a loopback address
// means it to be reached; policies decide on it. It is the rule that kubelet has in filter INPUT (KUBE-FIREWALL;
// CVE-2020-8558).
func toLoopback(f conf.Family, r ruleset.Rule) ruleset.Rule {
	r.Dst, r.Track, r.Action = loopback[f], ruleset.Untranslated, ruleset.Drop
	r.Comment = "weir: no pod reaches the loopback of its node"
	return r
}
