package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// demand is what one peer with one group of ports of a policy's rule needs in the kernel: in each family a rule in the
// chain of each class that is under the policy, and the sets that the rule goes by. It is met whole or not at all.
type demand struct {
	policy  parsedPolicy
	side    side
	rule    rule
	peer    peer
	ports   ports
	classes int
	rules   []familyRule
	sets    []*supply
}

type familyRule struct {
	family conf.Family
	ruleset.Rule
}

// cost returns how many of the kernel's rules the demand takes.
func (d *demand) cost() float64 { return float64(d.classes * len(d.rules) * d.ports.rules()) }

// supply is a set that demands go by. It is filled when it is first looked at, since that means looking through all
// pods.
type supply struct {
	ruleset.Set
	filled  bool
	fill    func() []ruleset.Entry
	entries float64 // that it counts for
	why     string  // there can't be such a set
	users   []*tenant
}

// demands are those of the policies of the classes, in both families, a namespace's in the order of its policies. What
// the kernel refuses is told of, and isn't among them.
func (c *compiler) demands(s side, groups []*group, fs []conf.Family) []*demand {
	classes := map[string]int{}
	var policies []parsedPolicy
	for _, g := range groups {
		seen := map[string]bool{}
		for _, policy := range slices.Concat(g.policies...) {
			if seen[policy.name] { // of each pod that this one may be
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
		for _, r := range policy.rules[s.direction] {
			for _, p := range r.peers {
				for _, ports := range r.ports {
					d := &demand{policy: policy, side: s, rule: r, peer: p, ports: ports, classes: classes[policy.name]}
					if c.fit(d, fs) {
						all = append(all, d)
					}
				}
			}
		}
	}
	return all
}

// fit makes the rules and names the sets of the demand. It is false if the kernel refuses one of them.
func (c *compiler) fit(d *demand, fs []conf.Family) bool {
	for _, f := range fs {
		if !d.peer.means(f) {
			continue
		}
		rule := ruleset.Rule{
			Proto: d.ports.proto, Ports: d.ports.ranges, Action: ruleset.Return, Policy: d.policy.name,
			Comment: fmt.Sprintf("weir: %s %s: %s", d.policy.name, d.peer.field, d.peer.words),
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
			if !slices.Contains(d.sets, s) { // that of port numbers is both families'
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

func (c *compiler) reportPorts(d *demand, why string) {
	for _, field := range d.ports.told() {
		c.report(d.policy, d.rule.field+"."+field, why)
	}
}

// supplied is the set of that name, for which several demands may ask.
func (c *compiler) supplied(s ruleset.Set, fill func() []ruleset.Entry) *supply {
	if c.supplies[s.Name] == nil {
		s.Opens = true
		c.supplies[s.Name] = &supply{Set: s, fill: fill}
	}
	return c.supplies[s.Name]
}

// peerSet is the set that the peer is matched by.
func (c *compiler) peerSet(p peer, f conf.Family) *supply {
	s := ruleset.Set{Name: f.Set(p.set), Family: f, Role: ruleset.Peers}
	if p.selector != nil {
		s.Kind = ruleset.Addresses
		return c.supplied(s, func() []ruleset.Entry { return c.cluster.selected(*p.selector, f) })
	}
	s.Kind = ruleset.Networks
	return c.supplied(s, func() []ruleset.Entry { return slices.Collect(p.of(f)) })
}

// portSet is the set that ports are matched by if they are no numbers, or too many to stand in the rule; nil if they
// stand there.
//
// A name's set has the pods that have the port, each with its number. Beside a peer's set in one rule it means that
// peer's pods. The number is in no rule, so a pod that has another one changes the set only. Where the port is that of
// the pods the policy selects, those of this node are enough.
func (c *compiler) portSet(s side, p ports, f conf.Family) (set *supply, match ruleset.SetMatch, words string) {
	switch {
	case p.name != "":
		name := f.Set(conf.NamedPortSets + ruleset.Hash(key(string(s.direction), p.name, string(p.proto))))
		fill := func() []ruleset.Entry { return c.cluster.named(p.name, p.proto, s.direction == ruleset.Ingress, f) }
		set = c.supplied(ruleset.Set{Name: name, Family: f, Kind: ruleset.AddressPorts, Role: ruleset.Peers}, fill)
		return set, ruleset.SetMatch{Name: name, By: ruleset.DestinationPair}, ", port " + p.name
	case p.set != "":
		fill := func() []ruleset.Entry { return numbers(p.numbers) }
		set = c.supplied(ruleset.Set{Name: p.set, Kind: ruleset.Ports, Role: ruleset.Peers}, fill)
		return set, ruleset.SetMatch{Name: p.set, By: ruleset.DestinationPort}, fmt.Sprintf(", %d ports", count(p.numbers))
	}
	return nil, ruleset.SetMatch{}, ""
}

// look fills the set if nobody has. It says why there can't be such a set; nobody is let through by it then.
func (s *supply) look() (why string) {
	if s.filled {
		return s.why
	}
	s.filled = true
	s.Entries = ruleset.Order(s.fill())
	if n := len(s.Entries); n > conf.MaxSetEntries {
		s.why = fmt.Sprintf("matches %d addresses, and a set can have %d; it allows nothing", n, conf.MaxSetEntries)
		s.Entries = nil
		return s.why
	}
	s.entries = float64(roughly(len(s.Entries)))
	return ""
}

// roughly is the number, rounded up by at most an eighth: a pod that comes or goes rarely changes what a set counts
// for, and so which of the demands beyond the bounds are met.
func roughly(n int) int {
	step := 1
	for n/step >= 16 {
		step *= 2
	}
	return (n + step - 1) / step * step
}

// field is that which the set stands for in the demand.
func (d *demand) field(s *supply) string {
	if s.Kind == ruleset.AddressPorts || s.Kind == ruleset.Ports {
		return d.rule.field + ".ports"
	}
	return d.peer.field
}
