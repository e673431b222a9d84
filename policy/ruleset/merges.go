package ruleset

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

type merge struct {
	plan  *chainPlan
	chain int   // index of the chain in the ruleset
	rules []int // indexes of the replaced rules in the chain, in order
	rule  Rule
	peers int // index of the merged set in rule.Sets
	kind  SetKind
	parts []part // in order, without duplicates
	key   string // a text for the rule's conditions and the first part
	set   *mergedSet
}

type mergedSet struct {
	name   string
	kind   SetKind
	family conf.Family
	parts  []part
}

// part is a set whose entries are in a merged set. If the part has ports, the merged set has each entry with each port.
type part struct {
	set   string
	proto Protocol
	ports string // two bytes for each port
}

func portsOf(numbers []uint16) string {
	text := make([]byte, 0, 2*len(numbers))
	for _, n := range numbers {
		text = append(text, byte(n>>8), byte(n))
	}
	return string(text)
}

func (p part) times() int { return max(len(p.ports)/2, 1) }

func (p part) add(all []Entry, e Entry) []Entry {
	if p.ports == "" {
		return append(all, e)
	}
	e.Proto = p.proto
	for i := 0; i < len(p.ports); i += 2 {
		e.Port = uint16(p.ports[i])<<8 | uint16(p.ports[i+1])
		all = append(all, e)
	}
	return all
}

func (p part) compare(o part) int {
	return cmp.Or(cmp.Compare(p.set, o.set), cmp.Compare(p.proto, o.proto), cmp.Compare(p.ports, o.ports))
}

func (b Bounds) merges(all groups, f conf.Family, sets map[string]*Set, refused Refused) (list []*merge, fit bool) {
	n := newNeeds(b, all, sets)
	for _, together := range n.withPorts() {
		m := n.merge(AddressPorts, together...)
		if why, _ := refused.Rule(f, m.rule); why != "" || refused.Set(f, AddressPorts, "") != "" {
			continue
		}
		list = append(list, m)
		for _, g := range together {
			n.usable[g] = nil
		}
	}
	n.keepLarge()
	for _, g := range all.list {
		if len(n.usable[g]) > 1 {
			list = append(list, n.merge(g.kind, g))
		}
	}
	slices.SortFunc(list, func(x, y *merge) int { return cmp.Compare(x.rules[0], y.rules[0]) })
	for _, m := range list {
		m.key = fmt.Sprintf("%s %s %s %q", f, m.kind, m.rule.Key(), m.parts[0])
	}
	return list, n.fit
}

// needs decides which sets are merged in a chain's groups (rules that differ only in the set of their peers).
type needs struct {
	Bounds
	of     groups
	sets   map[string]*Set
	usable map[*group]map[string]bool // for each group, the names of sets that may still be merged
	fit    bool
}

func newNeeds(b Bounds, of groups, sets map[string]*Set) *needs {
	n := &needs{b, of, sets, map[*group]map[string]bool{}, true}
	for _, g := range of.list {
		usable := map[string]bool{}
		for _, name := range g.sets {
			if n.sizeClass(name) != tooLarge {
				usable[name] = true
			}
		}
		n.usable[g] = usable
	}
	return n
}

func (n *needs) sizeClass(name string) int { return n.Bounds.sizeClass(n.sets[name].Entries.Len()) }

func (n *needs) keepLarge() {
	byRest := map[string][]*group{}
	for _, g := range n.of.list {
		if len(n.usable[g]) > 0 {
			byRest[g.rest] = append(byRest[g.rest], g)
		}
	}
	for _, kinds := range byRest {
		lookUps, room := 0, n.Sets-len(kinds)
		var large []string
		for _, g := range kinds {
			lookUps += len(n.usable[g])
			seen := map[string]bool{}
			for _, name := range g.sets {
				if seen[name] {
					continue
				}
				switch seen[name] = true; n.sizeClass(name) {
				case 0:
				case tooLarge:
					lookUps, room = lookUps+1, room-1
				default:
					large = append(large, name)
				}
			}
		}
		if lookUps <= n.Sets {
			for _, g := range kinds {
				n.usable[g] = nil
			}
			continue
		}
		slices.SortFunc(large, func(x, y string) int { return cmp.Or(n.sizeClass(y)-n.sizeClass(x), cmp.Compare(x, y)) })
		for _, name := range large[:min(max(room, 0), len(large))] {
			for _, g := range kinds {
				delete(n.usable[g], name)
			}
		}
	}
}

func (n *needs) pairsOf(g *group) (sum int) {
	for name := range n.usable[g] {
		sum += len(g.numbers) * rounded(n.sets[name].Entries.Len())
	}
	return sum
}

// rounded rounds up, by at most an eighth. So one added or deleted entry rarely changes which rules are merged.
func rounded(n int) int {
	step := 1
	for n/step >= 16 {
		step *= 2
	}
	return (n + step - 1) / step * step
}

func (n *needs) withPorts() (all [][]*group) {
	type kin struct {
		run   int
		proto Protocol
		by    Part
	}
	by := map[kin][]*group{}
	var order []kin
	for _, g := range n.of.list {
		if g.kind != Addresses || len(g.numbers) == 0 || len(n.usable[g]) == 0 {
			continue
		}
		k := kin{g.run, g.like.Proto, g.like.Sets[g.peers].By}
		if by[k] = append(by[k], g); len(by[k]) == 1 {
			order = append(order, k)
		}
	}
	for _, k := range order {
		groups, sum := by[k], 0
		for _, g := range groups {
			sum += n.pairsOf(g)
		}
		if len(groups) <= n.Lists {
			continue
		}
		if sum > n.Pairs {
			n.fit = false
			slices.SortStableFunc(groups, func(x, y *group) int { return cmp.Compare(n.pairsOf(x), n.pairsOf(y)) })
			for ; sum > n.Pairs; groups = groups[:len(groups)-1] {
				sum -= n.pairsOf(groups[len(groups)-1])
			}
		}
		if len(groups) > n.Lists {
			all = append(all, groups)
		}
	}
	return all
}

func (n *needs) merge(kind SetKind, groups ...*group) *merge {
	like := groups[0]
	m := &merge{kind: kind, rule: like.like, peers: like.peers}
	m.rule.Sets = slices.Clone(like.like.Sets)
	withPorts := kind == AddressPorts
	if withPorts {
		m.rule.Ports = nil
		m.rule.Sets[m.peers].By = map[Part]Part{Source: SourcePair, Destination: DestinationPair}[m.rule.Sets[m.peers].By]
	}
	for _, g := range groups {
		p := part{}
		if withPorts {
			p.proto, p.ports = g.like.Proto, portsOf(g.numbers)
		}
		for i, name := range g.sets {
			if n.usable[g][name] {
				m.rules = append(m.rules, g.rules[i])
			}
		}
		for p.set = range n.usable[g] {
			m.parts = append(m.parts, p)
		}
	}
	slices.Sort(m.rules)
	slices.SortFunc(m.parts, part.compare)
	for _, i := range m.rules {
		m.rule.Policies = append(m.rule.Policies, n.of.rules[i].Policies...)
	}
	slices.Sort(m.rule.Policies)
	m.rule.Policies = slices.Compact(m.rule.Policies)
	m.rule.Comment = mergedComment(len(m.parts), m.rule.Policies)
	return m
}

func mergedComment(sets int, policies []string) string {
	more := ""
	const named = 3
	if n := len(policies) - named; n > 0 {
		policies, more = policies[:named], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("weir: %d sets of peers in one: %s%s", sets, strings.Join(policies, ", "), more)
}
