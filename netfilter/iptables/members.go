package iptables

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Members are the addresses that some class holds, by direction: rules that were made before, by whichever agent, check
// them. It reads the sets alone, and says nothing of whether the chains that go by them stand.
//
// Equivalent to: ipset list, of the sets weir-in-* and weir-eg-*
func (d *Driver) Members() (map[ruleset.Direction]map[netip.Addr]bool, error) {
	headers, err := d.sets.Headers()
	if err != nil {
		return nil, err
	}
	members := map[ruleset.Direction]map[netip.Addr]bool{ruleset.Ingress: {}, ruleset.Egress: {}}
	for _, h := range headers {
		direction := ruleset.Ingress
		switch {
		case conf.EgressClass(h.Name):
			direction = ruleset.Egress
		case !conf.IngressClass(h.Name):
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
