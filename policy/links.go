package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// Link is where the packets of an endpoint come in: by which link, as a rule's -i says it, and by which port of that
// link if it is a bridge of another plugin.
type Link struct{ In, Port string }

// LinkOf is the link of an endpoint; empty if it isn't known, or has a name that a rule can't say.
func LinkOf(e endpoint.Endpoint) Link {
	switch {
	case !e.Chained:
		return Link{In: conf.Bridge}
	case strings.ContainsFunc(e.BridgeIf+e.HostIf, odd):
		return Link{}
	case e.BridgeIf != "":
		return Link{In: e.BridgeIf, Port: e.HostIf}
	}
	return Link{In: e.HostIf}
}

// odd holds for characters that a link's name may have, and iptables takes for something else: a + at the end is any
// end.
func odd(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("-._@", r)
}

// links are the rules for pods whose links other plugins made, and the spoof guard doesn't see.
type links struct {
	neighbours []Rule // ahead of what judges
	senders    []Rule // drop forged senders
	self       []Rule // let a pod reach itself
	loopback   []Rule // in INPUT
	masquerade []Rule
}

// links makes the sets, chain and rules for pods behind other plugins, if there are any.
//
// A link that the node routes (ptp) belongs to one pod. So what comes in by it under another address is forged, and
// dropped, as the spoof guard does on weir's own bridge. On a bridge it isn't known who else is there; a pod has a
// port of it, but no set goes by ports (ipset's physdev entries are matched by no rule of iptables). So rules name
// the port of each pod there. They are read by ICMP's packets, whose errors the pod sends under its own addresses
// alone, and by packets whose sender is their receiver.
func (c *compiler) links(state State, judge []Rule) links {
	var chained, own, senders []Entry
	var ports, foreign []Rule
	bridges := map[string]bool{}
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
			chained = append(chained, Entry{Element{Prefix: address}, words})
			switch {
			case link.Port != "":
				ports = append(ports, Rule{
					Src: address, InPort: link.Port, Comment: "weir: from " + words + " itself", Target: Return,
				})
			case link.In != "":
				senders = append(senders, Entry{Element{Prefix: address, Link: link.In}, words})
			}
		}
		switch {
		case link.Port != "" && has:
			bridges[link.In] = true
			foreign = append(foreign, Rule{
				InPort: link.Port, Comment: "weir: an ICMP error of " + words + " under a foreign name", Target: Drop,
			})
		case link.Port == "" && link.In != "": // of a family that the pod has no address of, all is forged
			own = append(own, Entry{Element{Prefix: netip.PrefixFrom(unspecified[c.family], 0), Link: link.In}, words})
		}
	}
	if len(chained)+len(own) == 0 {
		return links{}
	}
	chainedSet, linksSet, sendersSet := c.family.Set(ChainedSet), c.family.Set(LinksSet), c.family.Set(SendersSet)
	c.set(Set{Name: chainedSet, Type: HashIP, Role: Judged, Entries: chained})
	c.set(Set{Name: linksSet, Type: HashNetIface, Role: Judged, Entries: own})
	c.set(Set{Name: sendersSet, Type: HashNetIface, Role: Peers, Entries: senders})
	slices.SortFunc(ports, func(a, b Rule) int { return a.Src.Addr().Compare(b.Src.Addr()) })
	slices.SortFunc(foreign, func(a, b Rule) int { return cmp.Compare(a.InPort, b.InPort) })
	c.chain("mangle", selfChain, slices.Concat([]Rule{{
		Sets:    []SetMatch{{Name: sendersSet, Dir: "src,src"}},
		Comment: "weir: a pod reaching itself through its Service", Target: Return,
	}}, ports, judge)...)
	r := links{
		senders: []Rule{{
			Sets:    []SetMatch{{Name: linksSet, Dir: "src,src"}, {Name: sendersSet, Dir: "src,src", Not: true}},
			Comment: "weir: from the link of a pod, but under another address", Target: Drop,
		}},
		self: []Rule{{
			Program: self[c.family], Comment: "weir: to its own sender: a pod itself?", Target: GoTo, To: selfChain,
		}},
		masquerade: []Rule{{
			Sets:    []SetMatch{{Name: chainedSet, Dir: "src"}},
			Comment: "weir: pods whose network another plugin made, and sees to", Target: Return,
		}},
		loopback: []Rule{toLoopback(c.family, Rule{Sets: []SetMatch{{Name: linksSet, Dir: "src,src"}}})},
	}
	if len(bridges) > 0 {
		c.chain("mangle", portsChain, slices.Concat(ports, []Rule{
			{
				Sets:    []SetMatch{{Name: chainedSet, Dir: "src"}},
				Comment: "weir: ICMP under the address of a pod, but not from it", Target: Drop,
			},
			{Program: noError[c.family], Comment: "weir: no error", Target: Return},
		}, foreign)...)
	}
	for _, name := range slices.Sorted(maps.Keys(bridges)) {
		r.senders = append(r.senders, Rule{
			Proto: icmp[c.family], In: name,
			Comment: "weir: ICMP from a bridge: under its own name?", Target: JumpTo, To: portsChain,
		})
		r.loopback = append(r.loopback, toLoopback(c.family, Rule{In: name}))
	}
	// Pods whose links weir makes know their neighbours from the start, and no others.
	if c.family == conf.IPv6 {
		for _, kind := range []Track{Solicitation, Advertisement} {
			r.neighbours = append(r.neighbours, Rule{
				Proto: icmpv6, Track: kind, Comment: "weir: hosts on one link find each other", Target: Return,
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
// means it to be reached; policies judge it. It is the rule that kubelet has in filter INPUT (KUBE-FIREWALL;
// CVE-2020-8558).
func toLoopback(f conf.Family, r Rule) Rule {
	r.Dst, r.Track, r.Target = loopback[f], Untranslated, Drop
	r.Comment = "weir: no pod reaches the loopback of its node"
	return r
}
