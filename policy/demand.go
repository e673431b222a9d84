package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// demand is the kernel's rules and sets that a policy's rule needs for one peer and one group of ports. In each family
// these are one rule in the chain of each class that the policy isolates, and the sets that this rule matches. The
// compiler grants a whole demand or no part of it.
type demand struct {
	policy  parsedPolicy
	side    side
	rule    rule
	peer    peer
	ports   ports
	classes int // how many classes the policy isolates
	rules   []familyRule
	sets    []*supply
}

// familyRule is a rule of one family.
type familyRule struct {
	family conf.Family
	ruleset.Rule
}

// cost returns how many kernel rules the demand needs.
func (d *demand) cost() float64 { return float64(d.classes * len(d.rules) * d.ports.rules()) }

// supply is a set that one or more demands need. It is counted when its size is first needed, and filled when a demand
// for it is granted, because both take time in proportion to the number of pods.
type supply struct {
	ruleset.Set
	count   func() int // returns how many entries the set may have
	fill    func() ruleset.Entries
	counted bool
	entries float64   // how many entries the set counts for
	why     string    // the reason why the set can't exist; empty if it can
	users   []*tenant // the namespaces that have a granted demand for the set
}

//	demands returns the demands of the policies that isolate the groups, sorted by policy. It leaves out demands with a
//
// part that the kernel refuses, and reports a problem for each.
func (c *compiler) demands(s side, groups []*group) []*demand {
	classes := map[string]int{}
	var policies []parsedPolicy
	for _, g := range groups {
		seen := map[string]bool{}
		for _, policy := range slices.Concat(g.policies...) {
			if seen[policy.name] { // an alternative of the same group has the policy too
				continue
			}
			seen[policy.name] = true
			if classes[policy.name]++; classes[policy.name] == 1 {
				policies = append(policies, policy)
			}
		}
	}
	slices.SortFunc(policies, func(a, b parsedPolicy) int { return cmp.Compare(a.name, b.name) })
	var all []*demand
	for _, policy := range policies {
		all = append(all, c.demandsOf(policy, s, classes[policy.name])...)
	}
	return all
}

// demandsOf returns the demands of one policy, which isolates that many classes. Once the policies of a namespace have
// asked for more than the whole node has room for, their other demands get nothing, and cost nothing.
func (c *compiler) demandsOf(policy parsedPolicy, s side, classes int) (all []*demand) {
	stated := c.stated[policy.namespace]
	if stated == nil {
		stated = &statement{sets: map[*supply]bool{}}
		c.stated[policy.namespace] = stated
	}
	for _, r := range policy.rules[s.direction] {
		for _, p := range r.peers {
			for _, ports := range r.ports {
				if stated.rules > c.room.rules || float64(len(stated.sets)) > c.room.sets {
					c.report(policy, p.field, noRoom)
					continue
				}
				d := &demand{policy: policy, side: s, rule: r, peer: p, ports: ports, classes: classes}
				if !c.complete(d) {
					continue
				}
				all, stated.rules = append(all, d), stated.rules+d.cost()
				for _, set := range d.sets {
					stated.sets[set] = true
				}
			}
		}
	}
	return all
}

// statement is what the policies of one namespace ask for.
type statement struct {
	rules float64
	sets  map[*supply]bool
}

// complete adds the rules and sets to the demand. It reports whether the demand has rules and the kernel refuses none
// of its parts. A demand has no rules if its peer can match no address of the families.
func (c *compiler) complete(d *demand) bool {
	for _, f := range c.families {
		if !d.peer.means(f) {
			continue
		}
		rule := ruleset.Rule{
			Proto: d.ports.proto, Ports: d.ports.ranges, Action: ruleset.Return, Comment: d.peer.comment,
			Policies: []string{d.policy.name},
		}
		if !d.peer.everyone {
			s := c.peerSet(d.peer, f)
			if why := c.refused.Set(f, s.Kind, s.Name); why != "" {
				c.report(d.policy, d.peer.field, refusedByKernel(why))
				return false
			}
			rule.Sets = append(rule.Sets, ruleset.SetMatch{Name: s.Name, By: d.side.peer})
			d.sets = append(d.sets, s)
		}
		if s, match, words := c.portSet(d.side, d.ports, f); s != nil {
			if why := c.refused.Set(s.Family, s.Kind, s.Name); why != "" {
				c.reportPorts(d, refusedByKernel(why))
				return false
			}
			rule.Sets = append(rule.Sets, match)
			rule.Comment += words
			if !slices.Contains(d.sets, s) { // both families use the same set of port numbers
				d.sets = append(d.sets, s)
			}
		}
		if why, ports := c.refused.Rule(f, rule); why != "" {
			if ports && len(d.ports.fields) > 0 {
				c.reportPorts(d, refusedByKernel(why))
			} else {
				c.report(d.policy, d.peer.field, refusedByKernel(why))
			}
			return false
		}
		d.rules = append(d.rules, familyRule{f, rule})
	}
	return len(d.rules) > 0
}

// reportPorts reports a problem for each field that has the demand's ports.
func (c *compiler) reportPorts(d *demand, why string) {
	for _, field := range d.ports.reportFields() {
		c.report(d.policy, d.rule.field+"."+field, why)
	}
}

// supplyFor returns the supply with the set's name, and makes it if there is none. Several demands can share a supply.
func (c *compiler) supplyFor(s ruleset.Set, count func() int, fill func() ruleset.Entries) *supply {
	if c.supplies[s.Name] == nil {
		s.Opens = true
		c.supplies[s.Name] = &supply{Set: s, count: count, fill: fill}
	}
	return c.supplies[s.Name]
}

// peerSet returns the supply of the set that matches the peer: a selector set or a block set.
func (c *compiler) peerSet(p peer, f conf.Family) *supply {
	s := ruleset.Set{Name: f.Set(p.set), Family: f, Role: ruleset.Peers}
	if p.selector != nil {
		s.Kind = ruleset.Addresses
		return c.supplyFor(s, func() int { return c.find.countSelected(*p.selector, f) },
			func() ruleset.Entries { return c.find.selected(*p.selector, f) })
	}
	s.Kind = ruleset.Networks
	return c.supplyFor(s, p.networks[f].Len, func() ruleset.Entries { return p.networks[f] })
}

// portSet returns the supply of the port set that matches the ports, how a rule matches the set, and words for the
// rule's comment. The supply is nil if the rule has the port numbers itself. A named port needs a set, and so does a
// list of numbers that is too long for a rule.
//
// The set of a named port has the address of each pod with that port, and the port's number in the pod. The number is
// only in the set, so a pod with another number changes no rule. For ingress the set has only pods of this node, as the
// port belongs to the pods that the policy selects.
func (c *compiler) portSet(s side, p ports, f conf.Family) (set *supply, match ruleset.SetMatch, words string) {
	switch {
	case p.name != "":
		port := namedPort{p.name, p.proto, s.direction == ruleset.Ingress}
		name := namedPortSet(port, f)
		set = c.supplyFor(ruleset.Set{Name: name, Family: f, Kind: ruleset.AddressPorts, Role: ruleset.Peers},
			func() int { return c.find.countNamed(port, f) },
			func() ruleset.Entries { return c.find.named(port, f) })
		return set, ruleset.SetMatch{Name: name, By: ruleset.DestinationPair}, ", port " + p.name
	case p.set != "":
		set = c.supplyFor(ruleset.Set{Name: p.set, Kind: ruleset.Ports, Role: ruleset.Peers},
			func() int { return count(p.numbers) },
			func() ruleset.Entries { return ruleset.EntriesOf(numbers(p.numbers)...) })
		return set, ruleset.SetMatch{Name: p.set, By: ruleset.DestinationPort}, fmt.Sprintf(", %d ports", count(p.numbers))
	}
	return nil, ruleset.SetMatch{}, ""
}

// namedPortSet returns the name of the set of a named port.
func namedPortSet(p namedPort, f conf.Family) string {
	direction := ruleset.Egress
	if p.here {
		direction = ruleset.Ingress
	}
	return f.Set(conf.NamedPortSets + ruleset.Hash(key(string(direction), p.name, string(p.proto))))
}

// ensureCounted counts the set's entries if they weren't counted before. It returns the reason why the set can't exist,
// or an empty text.
func (s *supply) ensureCounted() (why string) {
	if s.counted {
		return s.why
	}
	s.counted = true
	n := s.count()
	if n > maxSetEntries {
		s.why = fmt.Sprintf("matches %d addresses, and a set can have %d; it allows nothing", n, maxSetEntries)
		return s.why
	}
	s.entries = float64(roughly(n))
	return ""
}

// filled returns the set with its entries.
func (s *supply) filled() ruleset.Set {
	set := s.Set
	set.Entries = s.fill()
	return set
}

// roughly returns the number, rounded up by at most an eighth. So one pod more or less rarely changes how much a set
// counts for, and rarely changes which demands are granted on a node without room for all.
func roughly(n int) int {
	step := 1
	for n/step >= 16 {
		step *= 2
	}
	return (n + step - 1) / step * step
}

// field returns the policy's field that the set represents.
func (d *demand) field(s *supply) string {
	if s.Kind == ruleset.AddressPorts || s.Kind == ruleset.Ports {
		return d.rule.field + ".ports"
	}
	return d.peer.field
}
