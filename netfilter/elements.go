package netfilter

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Elements returns the elements that rules look up in this set when they check one of the packets.
func Elements(s ruleset.Set, packets []ruleset.Packet) (all []ruleset.Element) {
	add := func(e ruleset.Element) {
		if !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	for _, p := range packets {
		if s.Kind == ruleset.Ports {
			if p.Port != 0 {
				add(ruleset.Element{Port: p.Port})
			}
			continue
		}
		if conf.FamilyOf(p.Dst) != s.Family {
			continue
		}
		for _, a := range []netip.Addr{p.Src, p.Dst} {
			e := ruleset.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
			switch s.Kind {
			case ruleset.AddressLinks:
				if e.Link = p.In; a == p.Src && e.Link != "" {
					add(e)
				}
			case ruleset.AddressPorts:
				if e.Proto, e.Port = p.Proto, p.Port; p.Port != 0 {
					add(e)
				}
			default:
				add(e)
			}
		}
	}
	return all
}
