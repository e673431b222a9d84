package policy

import (
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// demand has the rules and sets that a policy's rule needs for one peer and one group of ports. The rules are added to
// the chain of each class that the policy isolates. The compiler grants a whole demand or nothing of it.
type demand struct {
	policy  *parsedPolicy
	side    *side
	rule    *rule
	peer    *peer
	ports   *ports
	classes int // how many classes the policy isolates
	rules   []familyRule
	sets    []*supply
	of      *part // the newest of the namespace's parts (see part) that has the demand
	ready   bool  // true if all sets are in the ruleset
}

type familyRule struct {
	family conf.Family
	ruleset.Rule
}

func (d *demand) cost() float64 { return float64(d.classes * len(d.rules) * d.ports.lists()) }

// ask has the demands of one policy in one direction. If the namespace gets a new part (type part), the new part
// reuses the ask, unless the policy's rules, the number of classes or the field refused would change.
type ask struct {
	rules   []rule
	refused bool // true if earlier policies need all the capacity; the ask then has no demands
	classes int  // how many classes the policy isolates
	demands []*demand
	sets    []*supply // without duplicates
	cost    float64   // how many rules in the kernel the demands need
	stated  problemList
}

type askKey struct {
	policy    string
	direction ruleset.Direction
}

type builder struct {
	*compiler
	*part
	last    map[askKey]*ask    // the asks of the namespace's old part, which the new part replaces
	created map[string]*supply // sets that the compiler doesn't have yet, by name
}

type isolation struct {
	*side
	policy  *parsedPolicy
	classes int
}

func isolations(groups [len(sides)][]*group) (all []*isolation) {
	for i, s := range sides {
		by := map[string]*isolation{}
		for _, g := range groups[i] {
			seen := map[string]bool{}
			for _, list := range g.policies {
				for _, policy := range list {
					if seen[policy.name] { // an earlier alternative of the group also has this policy
						continue
					}
					seen[policy.name] = true
					if by[policy.name] == nil {
						by[policy.name] = &isolation{side: s, policy: policy}
						all = append(all, by[policy.name])
					}
					by[policy.name].classes++
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *isolation) int { return comparePolicies(a.policy, b.policy) })
	return all
}

// demand adds the demands of the policies that isolate the groups' pods. If these demands need more rules or sets than
// a whole node has capacity for, demand refuses the rest of the policies.
func (b *builder) demand() {
	room := b.limits.node
	b.stamp++
	for _, i := range isolations(b.groups) {
		refused := b.rules > room.rules || float64(len(b.wants)) > room.sets
		key, rules := askKey{i.policy.name, i.direction}, i.policy.rules[i.direction]
		a := b.last[key]
		switch {
		case a != nil && a.refused == refused && a.classes == i.classes && sameRules(a.rules, rules):
		case refused:
			a = refuseAll(i)
		default:
			a = b.ask(i)
		}
		b.asks[key] = a
		b.demands, b.rules = append(b.demands, a.demands...), b.rules+a.cost
		for _, d := range a.demands {
			d.of = b.part
		}
		for _, s := range a.sets {
			if s.stamp != b.stamp {
				s.stamp, b.wants = b.stamp, append(b.wants, s)
			}
		}
		b.stated.add(i.policy, a.stated.all)
	}
}

func sameRules(a, b []rule) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

func refuseAll(i *isolation) *ask {
	a := &ask{rules: i.policy.rules[i.direction], classes: i.classes, refused: true}
	for _, r := range a.rules {
		for j := range r.peers {
			if len(a.stated.all) >= maxProblems {
				return a
			}
			if len(r.ports) > 0 {
				a.stated.report(i.policy, r.peers[j].field, noCapacity)
			}
		}
	}
	return a
}

func (b *builder) ask(i *isolation) *ask {
	a := &ask{rules: i.policy.rules[i.direction], classes: i.classes}
	has := map[*supply]bool{}
	for j := range a.rules {
		r := &a.rules[j]
		for k := range r.peers {
			for l := range r.ports {
				d := &demand{
					policy: i.policy, side: i.side, rule: r, peer: &r.peers[k], ports: &r.ports[l], classes: i.classes,
				}
				if !b.complete(d, &a.stated) {
					continue
				}
				a.demands = append(a.demands, d)
				a.cost += d.cost()
				for _, s := range d.sets {
					if !has[s] {
						has[s], a.sets = true, append(a.sets, s)
					}
				}
			}
		}
	}
	return a
}

// complete adds the demand's rules and sets of each family. It returns false if the kernel refuses one of them, or if
// the demand needs no rule in any family. It reports what the kernel refuses.
func (b *builder) complete(d *demand, stated *problemList) bool {
	for _, f := range b.common.families {
		if !d.peer.means(f) {
			continue
		}
		rule := ruleset.Rule{
			Proto: d.ports.proto, Ports: d.ports.ranges, Action: ruleset.Return, Comment: d.peer.comment,
			Policies: []string{d.policy.name},
		}
		if !d.peer.everyone {
			s := b.peerSet(d.peer, f)
			if why := b.refused.Set(f, s.Kind, s.Name); why != "" {
				stated.report(d.policy, d.peer.field, refusedByKernel(why))
				return false
			}
			rule.Sets = append(rule.Sets, ruleset.SetMatch{Name: s.Name, By: d.side.peer})
			d.sets = append(d.sets, s)
		}
		if s, match, words := b.portSet(d.side, d.ports, f); s != nil {
			if why := b.refused.Set(s.Family, s.Kind, s.Name); why != "" {
				stated.reportPorts(d, refusedByKernel(why))
				return false
			}
			rule.Sets = append(rule.Sets, match)
			rule.Comment += words
			if !slices.Contains(d.sets, s) { // both families use the same set of port numbers
				d.sets = append(d.sets, s)
			}
		}
		if why, ports := b.refused.Rule(f, rule); why != "" {
			if ports && len(d.ports.fields) > 0 {
				stated.reportPorts(d, refusedByKernel(why))
			} else {
				stated.report(d.policy, d.peer.field, refusedByKernel(why))
			}
			return false
		}
		d.rules = append(d.rules, familyRule{f, rule})
	}
	return len(d.rules) > 0
}

func (r *problemList) reportPorts(d *demand, why string) {
	for _, field := range d.ports.reportFields() {
		r.report(d.policy, d.rule.field+"."+field, why)
	}
}

func (b *builder) supplyFor(s supply) *supply {
	if known := b.supplies[s.Name]; known != nil {
		return known
	}
	if b.created[s.Name] == nil {
		s.Opens = true
		b.created[s.Name] = &s
	}
	return b.created[s.Name]
}

func (b *builder) peerSet(p *peer, f conf.Family) *supply {
	s := supply{Set: ruleset.Set{Name: f.Set(p.set), Family: f, Role: ruleset.Peers, Kind: ruleset.Networks}}
	if s.selector = p.selector; s.selector != nil {
		s.Kind = ruleset.Addresses
	} else {
		s.blocks = p.networks[f]
	}
	return b.supplyFor(s)
}

// portSet returns the set that the ports need, the rule's match of this set, and words for the rule's comment. set is
// nil if the ports need no set. The set of a named port contains pods' addresses, each with the number of the port.
func (b *builder) portSet(s *side, p *ports, f conf.Family) (set *supply, match ruleset.SetMatch, words string) {
	switch {
	case p.name != "":
		port := &namedPort{p.name, p.proto, s.direction == ruleset.Ingress}
		name := namedPortSet(*port, f)
		set = b.supplyFor(supply{
			Set: ruleset.Set{Name: name, Family: f, Kind: ruleset.AddressPorts, Role: ruleset.Peers}, port: port,
		})
		return set, ruleset.SetMatch{Name: name, By: ruleset.DestinationPair}, ", port " + p.name
	case p.set != "":
		set = b.supplyFor(supply{Set: ruleset.Set{Name: p.set, Kind: ruleset.Ports, Role: ruleset.Peers}, numbers: p.numbers})
		return set, ruleset.SetMatch{Name: p.set, By: ruleset.DestinationPort}, fmt.Sprintf(", %d ports", count(p.numbers))
	}
	return nil, ruleset.SetMatch{}, ""
}

func namedPortSet(p namedPort, f conf.Family) string {
	direction := ruleset.Egress
	if p.local {
		direction = ruleset.Ingress
	}
	return f.Set(conf.NamedPortSets + ruleset.Hash(key(string(direction), p.name, string(p.proto))))
}

// roughly rounds up, by at most an eighth. So a small change of a set rarely changes which demands are granted.
func roughly(n int) int {
	step := 1
	for n/step >= 16 {
		step *= 2
	}
	return (n + step - 1) / step * step
}

func (d *demand) field(s *supply) string {
	if s.Kind == ruleset.AddressPorts || s.Kind == ruleset.Ports {
		return d.rule.field + ".ports"
	}
	return d.peer.field
}
