package nftables

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

type table struct {
	family conf.Family
	sets   []set   // sorted by name
	chains []chain // sorted by name
	// partial is true if the kernel's sets and chains that aren't in this table stay as they are.
	partial bool
}

// stays reports whether the whole of the kernel's table stays as it is.
func (t *table) stays() bool { return t.partial && len(t.sets)+len(t.chains) == 0 }

// lowered has a table for each family, or nil for a family without rules.
type lowered [len(conf.Families)]*table

// only is a filter: the result has the tables of the given families. In place of the other families' tables, it has
// tables that change nothing in the kernel.
func (l lowered) only(families []conf.Family) lowered {
	for f := range l {
		if !slices.Contains(families, conf.Family(f)) {
			l[f] = &table{family: conf.Family(f), partial: true}
		}
	}
	return l
}

// set is a set or map of a table. In a map, the comment of an entry begins with the entry's verdict (withVerdict).
type set struct {
	nftnl.Set
	kind        ruleset.SetKind
	role        ruleset.SetRole
	opens       bool
	entries     ruleset.Entries
	listOfPorts bool
	classes     []class
}

type chain struct {
	nftnl.Chain
	rules   []rule
	written nftnl.Rules // a summary of the rules, to compare them with the rules in the kernel
	uses    []string    // names of the sets of ports, and of the sets of address pairs, that the rules use
}

// hooks has the kernel's hook for each hook of a ruleset. CheckForwarded and CheckToNode have the priority (-150) that
// their rules have with the backend iptables. So with both backends, a packet meets weir's rules and other programs'
// rules in the same order. The hook AcceptForwarded is missing here, because accept.go writes the rules for it.
var hooks = map[ruleset.Hook]nftnl.Hook{
	ruleset.CheckForwarded:  {Kind: "filter", Number: unix.NF_INET_FORWARD, Priority: -150},
	ruleset.CheckToNode:     {Kind: "filter", Number: unix.NF_INET_LOCAL_IN, Priority: -150},
	ruleset.TranslateSource: {Kind: "nat", Number: unix.NF_INET_POST_ROUTING, Priority: 101},
}

type lowering struct {
	sets   map[key]loweredSet
	chains map[key]loweredChain
	maps   map[key]loweredMap
	lacks  lacks
}

type key struct {
	family conf.Family
	name   string
}

type loweredChain struct {
	from    ruleset.Chain
	classes string
	to      chain
	ports   []set
}

func (m *lowering) lower(r ruleset.Ruleset) (l lowered) {
	last := *m
	*m = lowering{map[key]loweredSet{}, map[key]loweredChain{}, map[key]loweredMap{}, last.lacks}
	classSets := map[key]ruleset.Set{}
	for _, f := range conf.Families {
		if r.Has(f) {
			l[f] = &table{family: f}
		}
	}
	var ports []ruleset.Set
	for _, s := range r.Sets {
		switch {
		case s.Kind == ruleset.Ports:
			ports = append(ports, s)
		case s.Role == ruleset.Members:
			classSets[key{s.Family, s.Name}] = s
		case l[s.Family] != nil:
			l[s.Family].sets = append(l[s.Family].sets, m.set(last, s.Family, s))
		}
	}
	words := chainComments(r.Chains)
	for _, c := range r.Chains {
		if _, ok := hooks[c.Hook]; c.Hook != "" && !ok {
			continue
		}
		t := l[c.Family]
		classes := classesOf(c, classSets)
		if len(classes) > 0 {
			t.sets = append(t.sets, m.verdicts(last, c, classes))
		}
		done := m.chain(last, c, classes, words[key{c.Family, c.Name}])
		t.chains = append(t.chains, done.to)
		t.sets = append(t.sets, done.ports...)
	}
	for _, t := range l {
		if t != nil {
			m.complete(last, t, ports)
		}
	}
	return l
}

// complete adds the chain for labels (see the action labels), and the sets of ports and of address pairs (see variants)
// that the table's rules use.
func (m *lowering) complete(last lowering, t *table, ports []ruleset.Set) {
	t.chains = append(t.chains, chain{
		Chain: nftnl.Chain{Name: conf.LabelsChain, Comment: "weir: no packet comes here"},
		rules: []rule{{Rule: ruleset.Rule{
			Action: labels, Comment: "weir: the kernel has room for labels of connections while a rule writes one",
		}}},
	})
	t.chains[len(t.chains)-1].sum(t.family)
	used := map[string]bool{}
	for _, c := range t.chains {
		for _, name := range c.uses {
			used[name] = true
		}
	}
	for _, s := range ports {
		if used[s.Name] {
			t.sets = append(t.sets, m.set(last, t.family, s))
		}
	}
	slices.SortFunc(t.sets, func(a, b set) int { return cmp.Compare(a.Name, b.Name) })
	t.sets = slices.CompactFunc(t.sets, func(a, b set) bool { return a.Name == b.Name })
	if i := slices.IndexFunc(t.sets, func(s set) bool { return s.Name == t.family.Set(conf.PodsSet) }); i >= 0 {
		for _, s := range pairSets(t.family) {
			if used[s.Name] {
				s.entries = t.sets[i].entries
				t.sets = append(t.sets, s)
			}
		}
	}
	slices.SortFunc(t.sets, func(a, b set) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(t.chains, func(a, b chain) int { return cmp.Compare(a.Name, b.Name) })
}

func chainComments(chains []ruleset.Chain) map[key]string {
	all := map[key]string{}
	for _, c := range chains {
		if c.Name != conf.EgressChain && c.Name != conf.IngressChain {
			continue
		}
		for _, r := range c.Rules {
			if r.Action == ruleset.GoTo && len(r.Sets) == 1 && !r.Sets[0].Not { // without Not, the set is a class's set
				all[key{c.Family, r.To}] = r.Comment
			}
		}
	}
	return all
}

func (m *lowering) chain(last lowering, c ruleset.Chain, classes []class, words string) loweredChain {
	k := key{c.Family, c.Name}
	now := loweredChain{from: c, classes: nameOf(classes)}
	was, ok := last.chains[k]
	if ok && was.classes == now.classes && was.to.Comment == comment(cmp.Or(c.Comment, words)) && sameRules(was.from, c) {
		was.from = c
		m.chains[k] = was
		return was
	}
	now.to.Name, now.to.Comment = c.Name, comment(cmp.Or(c.Comment, words))
	if h, ok := hooks[c.Hook]; ok {
		now.to.Hook = &h
	}
	now.to.rules, now.ports = lowerRules(c, classes, m.lacks)
	now.to.sum(c.Family)
	m.chains[k] = now
	return now
}

func sameRules(a, b ruleset.Chain) bool {
	return a.Hook == b.Hook && len(a.Rules) == len(b.Rules) &&
		(len(a.Rules) == 0 || &a.Rules[0] == &b.Rules[0] || slices.EqualFunc(a.Rules, b.Rules, ruleset.Rule.Equal))
}

func (c *chain) sum(f conf.Family) {
	for _, r := range c.rules {
		written, _ := r.write(f)
		c.written.Add(written)
		for _, m := range r.Sets {
			if m.By == ruleset.DestinationPort || m.By == bothEnds || m.By == innerEnd {
				c.uses = append(c.uses, m.Name)
			}
		}
	}
}

// lowerRules returns the chain's rules, and sets for their lists of ports. One look-up takes the place of all rules
// that lead packets to classes. A rule that logs packets and a rule that drops the same packets become one rule.
func lowerRules(c ruleset.Chain, classes []class, without lacks) (rules []rule, lists []set) {
	toClass := map[string]bool{}
	for _, k := range classes {
		toClass[k.set] = true
	}
	dispatched := false
	for i := 0; i < len(c.Rules); i++ {
		r := rule{Rule: c.Rules[i], from: &c.Rules[i]}
		r.Sets = byLink(r.Sets, c.Family)
		switch {
		case isToClass(r.Rule, toClass):
			if dispatched {
				continue
			}
			dispatched = true
			r = rule{
				Rule:     ruleset.Rule{Comment: "weir: to the chain with the policies of the pod"},
				Verdicts: c.Family.Set(mapOf(c.Name)), By: r.Sets[0].By,
			}
		case r.Action == ruleset.Log && without.logs:
			continue
		case r.Action == ruleset.Log && i+1 < len(c.Rules) && dropsTheSame(r.Rule, c.Rules[i+1]):
			r.Log, r.Action, r.To = r.To, ruleset.Drop, ""
			i++
		}
		for _, r := range variants(r, c.Family, !without.ports) {
			split, own := splitPorts(r)
			rules, lists = append(rules, split...), append(lists, own...)
		}
	}
	return rules, lists
}

func byLink(sets []ruleset.SetMatch, f conf.Family) []ruleset.SetMatch {
	for i, m := range sets {
		if m.By == ruleset.SourceLink && m.Name == f.Set(conf.LinksSet) {
			sets = slices.Clone(sets)
			sets[i].By = sourceLinkOnly
		}
	}
	return sets
}

func dropsTheSame(log, drop ruleset.Rule) bool {
	log.Action, log.To = ruleset.Drop, ""
	return log.Equal(drop)
}

func splitPorts(r rule) (rules []rule, lists []set) {
	if len(r.Ports) < 2 {
		return []rule{r}, nil
	}
	var single []ruleset.Entry
	var name strings.Builder
	for _, p := range r.Ports {
		if p.First == p.Last {
			single = append(single, ruleset.Entry{Element: ruleset.Element{Port: p.First}})
			name.WriteString(p.String() + ",")
			continue
		}
		ranged := r
		ranged.Ports = []ruleset.PortRange{p}
		rules = append(rules, ranged)
	}
	switch list := r; len(single) {
	case 0:
	case 1:
		list.Ports = []ruleset.PortRange{{First: single[0].Port, Last: single[0].Port}}
		rules = append(rules, list)
	default:
		s := set{kind: ruleset.Ports, opens: true, listOfPorts: true, entries: ruleset.EntriesOf(single...)}
		s.Name, s.Layout, s.Comment = conf.NumberSets+ruleset.Hash(name.String()), nftnl.Port, "weir: a list of ports"
		list.Ports = nil
		list.Sets = append([]ruleset.SetMatch{{Name: s.Name, By: ruleset.DestinationPort}}, r.Sets...)
		rules, lists = append(rules, list), append(lists, s)
	}
	return rules, lists
}
