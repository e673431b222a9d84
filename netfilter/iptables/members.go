package iptables

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Members returns the addresses of the pods that are in a class, by direction. It reads no rules.
//
// Equivalent to: ipset list weir-in; ipset list weir-eg (weir-in6 and weir-eg6 for IPv6; and each class set, weir-in-*
// or weir-eg-*)
func (d *Driver) Members() (map[ruleset.Direction]map[netip.Addr]bool, error) {
	headers, err := d.sets.Headers()
	if err != nil {
		return nil, err
	}
	members := map[ruleset.Direction]map[netip.Addr]bool{ruleset.Ingress: {}, ruleset.Egress: {}}
	for _, h := range headers {
		var direction ruleset.Direction
		switch conf.KindOfSet(h.Name) {
		case conf.SetOfIngress:
			direction = ruleset.Ingress
		case conf.SetOfEgress:
			direction = ruleset.Egress
		default:
			continue
		}
		set, err := d.sets.List(h.Name)
		if err != nil {
			return nil, err
		}
		for _, e := range set.Entries {
			members[direction][e.Prefix.Addr()] = true
		}
	}
	return members, nil
}
