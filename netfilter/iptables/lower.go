package iptables

import (
	"cmp"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

type lowered struct {
	sets   []ruleset.Set
	chains []chain
	jumps  []jump
	// whole has the names of the sets with the network /0. In an ipset, two entries take the place of this network.
	whole   map[string]bool
	numbers numbers
	// classes has the classes of each set of numbered pods (such as weir-in), by the name of the set.
	classes map[string][]class
}

type numbers [len(conf.Families)]map[string]*numbering

type chain struct {
	family      conf.Family
	table, name string
	lines       []string
	rules       []ruleset.Rule // the rules that were lowered to the lines
	dispatch    []string       // the sets that the rules look up (not those after "!"), in the rules' order
}

// jump is a rule that leads from a built-in chain to one of weir's chains. If first is true, the jump must be the first
// rule of the built-in chain. In filter FORWARD, it must be directly before the rules that refuse all new connections
// (refusesAt). If there are no such rules, it must be the last rule there. In nat POSTROUTING, the jump's place doesn't
// matter.
type jump struct {
	family       conf.Family
	table, chain string
	first        bool
	to           string
	line         string
}

type place struct {
	table, chain string
	first        bool
}

var places = map[ruleset.Hook]place{
	ruleset.CheckForwarded:  {"mangle", "FORWARD", true},
	ruleset.CheckToNode:     {"mangle", "INPUT", true},
	ruleset.AcceptForwarded: {"filter", "FORWARD", false},
	ruleset.TranslateSource: {"nat", "POSTROUTING", false},
}

// checks is the table whose chains drop packets.
const checks = "mangle"

type lowering struct {
	sets    []loweredSet // in the order of the ruleset's sets
	chains  map[chainKey]loweredChain
	members map[string]loweredMembers // by the name of the set, for sets of kind numberedPods
}

type chainKey struct {
	family conf.Family
	name   string
}

// lower lowers the ruleset to iptables rules and ipsets, without numbers of classes (see numbers.go).
func lower(r ruleset.Ruleset) *lowered { return new(lowering).lower(r, numbers{}) }

// lower lowers the ruleset. In a family with numbers of classes (see numbers.go), one set of numbered pods takes the
// place of all class sets of a direction.
func (m *lowering) lower(r ruleset.Ruleset, n numbers) *lowered {
	l := &lowered{whole: map[string]bool{}, numbers: n, classes: map[string][]class{}}
	last := *m
	m.sets, m.chains = make([]loweredSet, 0, len(r.Sets)), make(map[chainKey]loweredChain, len(r.Chains))
	l.sets = make([]ruleset.Set, 0, len(r.Sets))
	m.members = map[string]loweredMembers{}
	classSets, inParts := map[string]ruleset.Set{}, divided{}
	for _, s := range r.Sets {
		if n[s.Family] != nil && s.Role == ruleset.Members {
			classSets[s.Name] = s
			continue
		}
		all := partsOf(s)
		inParts.add(s, all)
		for _, s := range all {
			l.addSet(m, &last, s)
		}
	}
	for _, c := range r.Chains {
		var classes []class
		if n[c.Family][c.Name] != nil {
			classes = classesOf(c, classSets)
			l.sets = append(l.sets, m.memberSet(last, c, classes, n[c.Family][c.Name]))
			l.classes[l.sets[len(l.sets)-1].Name] = classes
		}
		key := chainKey{c.Family, c.Name}
		at := lowerChain(c, classes, n[c.Family], inParts, last.chains[key])
		m.chains[key] = at
		if c.Hook != "" {
			p := places[c.Hook]
			comment := c.Comment
			// Only the jump for masquerading has a comment, because only the first packet of a connection comes to this jump.
			// All packets come to the other jumps, and a comment is one more match for the kernel.
			if c.Hook != ruleset.TranslateSource {
				comment = ""
			}
			line := ruleText(ruleset.Rule{Comment: comment, Action: ruleset.Jump, To: c.Name}, c.Family)
			l.jumps = append(l.jumps, jump{c.Family, p.table, p.chain, p.first, c.Name, line})
		}
		l.chains = append(l.chains, at.chains...)
	}
	slices.SortStableFunc(l.chains, func(a, b chain) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.table, b.table), cmp.Compare(a.name, b.name))
	})
	slices.SortStableFunc(l.jumps, func(a, b jump) int {
		return cmp.Or(cmp.Compare(a.family, b.family), inOrder(a.table)-inOrder(b.table), cmp.Compare(a.chain, b.chain))
	})
	return l
}

// addSet lowers the set s, and reuses the set of the same name in last (the last lowering). Sets must be added in the
// order of their names, because addSet removes all earlier names from last.sets.
func (l *lowered) addSet(m, last *lowering, s ruleset.Set) {
	for len(last.sets) > 0 && last.sets[0].name < s.Name {
		last.sets = last.sets[1:]
	}
	var done loweredSet
	if len(last.sets) > 0 && last.sets[0].name == s.Name {
		done = last.sets[0]
	}
	done = done.next(s)
	if m.sets = append(m.sets, done); done.whole {
		l.whole[s.Name] = true
	}
	s.Entries = done.to
	l.sets = append(l.sets, s)
}

func (m *lowering) set(s ruleset.Set) loweredSet {
	byName := func(l loweredSet, name string) int { return cmp.Compare(l.name, name) }
	i, ok := slices.BinarySearchFunc(m.sets, s.Name, byName)
	if !ok {
		return loweredSet{}.next(s)
	}
	m.sets[i] = m.sets[i].next(s)
	return m.sets[i]
}

type loweredChain struct {
	rules   []ruleset.Rule
	numbers *numbering // the numbers of classes (numbers.go), if this is a dispatch chain; otherwise nil
	around  bool       // true if the family has numbers of classes (numbers.go)
	parts   int        // how many parts of divided sets the rules look up
	chains  []chain
}

func lowerChain(
	c ruleset.Chain, classes []class, numbers map[string]*numbering, inParts divided, before loweredChain,
) loweredChain {
	table := checks
	if c.Hook != "" {
		table = places[c.Hook].table
	}
	now := loweredChain{c.Rules, numbers[c.Name], numbers != nil, inParts.usedBy(c.Rules), nil}
	if len(before.chains) > 0 && before.chains[0].table == table && before.numbers == now.numbers &&
		before.around == now.around && before.parts == now.parts &&
		slices.EqualFunc(before.rules, c.Rules, ruleset.Rule.Equal) {
		return before
	}
	if now.numbers != nil {
		now.chains = lowerDispatch(dispatches[c.Name], c, classes, now.numbers)
		return now
	}
	one := func(rule ruleset.Rule) (lines []string) {
		switch {
		case rule.Track == ruleset.Established || c.Hook == ruleset.AcceptForwarded && len(rule.Sets) == 0:
			// Nearly every packet comes to this rule, and a comment is one more match for the kernel.
			rule.Comment = ""
		case c.Hook == ruleset.AcceptForwarded:
			rule.Comment = "weir: judged in the " + checks + " table"
		}
		for _, r := range inParts.rules(rule) {
			lines = append(lines, lowerRule(r, c.Family)...)
		}
		return lines
	}
	at := chain{family: c.Family, table: table, name: c.Name, rules: c.Rules, dispatch: c.Dispatch()}
	if numbers != nil {
		at.lines = lowerAround(c.Rules, one)
	} else {
		for _, rule := range c.Rules {
			at.lines = append(at.lines, one(rule)...)
		}
	}
	now.chains = []chain{at}
	return now
}

func inOrder(table string) int { return slices.Index(tablesUsed, table) }

func (l *lowered) only(families []conf.Family) *lowered {
	part := *l
	part.sets, part.chains, part.jumps = nil, nil, nil
	for _, f := range families {
		for _, s := range l.sets {
			if s.Family == f {
				part.sets = append(part.sets, s)
			}
		}
		for _, c := range l.chains {
			if c.family == f {
				part.chains = append(part.chains, c)
			}
		}
		for _, j := range l.jumps {
			if j.family == f {
				part.jumps = append(part.jumps, j)
			}
		}
	}
	return &part
}

func (l *lowered) has(f conf.Family) bool {
	return slices.ContainsFunc(l.chains, func(c chain) bool { return c.family == f })
}

func (l *lowered) check(f conf.Family, name string) chain {
	for _, c := range l.chains {
		if c.family == f && c.table == checks && c.name == name {
			return c
		}
	}
	return chain{}
}

type loweredSet struct {
	name     string
	kind     ruleset.SetKind
	from, to ruleset.Entries
	whole    bool // true if the set contains all addresses, which ipset stores as two halves
}

// next lowers the set. s is the lowered form of an earlier set of this name. If possible, next lowers only the entries
// that have changed since. ipset can't store the network /0, so two halves replace it.
func (s loweredSet) next(now ruleset.Set) loweredSet {
	if s.name == now.Name && s.kind == now.Kind && s.from.Same(now.Entries) {
		return s
	}
	n := loweredSet{now.Name, now.Kind, now.Entries, now.Entries, hasAll(now)}
	if n.whole || s.whole || s.kind != now.Kind {
		s = loweredSet{}
	}
	shared := s.from.Same(s.to)
	for c := range s.from.Diff(now.Entries) {
		shared = shared && (!c.Has || conf.Comment(c.Now) == c.Now)
	}
	if shared && !n.whole {
		return n
	}
	n.to = s.to
	for c := range s.from.Diff(now.Entries) {
		switch e := (ruleset.Entry{Element: c.Key, Comment: conf.Comment(c.Now)}); {
		case !c.Has:
			n.to = n.to.Without(c.Key)
		case n.whole && e.Prefix.Bits() == 0:
			for _, half := range halvesOf(e.Prefix) {
				n.to = n.to.With(ruleset.Entry{Element: ruleset.Element{Prefix: half}, Comment: e.Comment})
			}
		default: // if the set has both /0 and this half of it, the comment that sorts first stays
			if was, ok := n.to.Get(e.Element); !ok || !n.whole || e.Comment < was {
				n.to = n.to.With(e)
			}
		}
	}
	return n
}

func hasAll(s ruleset.Set) bool {
	if s.Kind != ruleset.Networks {
		return false
	}
	for e := range s.Entries.All() {
		return e.Prefix.Bits() == 0
	}
	return false
}

func halvesOf(all netip.Prefix) [2]netip.Prefix {
	lower := netip.PrefixFrom(all.Addr(), 1)
	return [2]netip.Prefix{lower, netip.PrefixFrom(netipx.PrefixLastIP(lower).Next(), 1)}
}

// raise returns the refusals with the names and entries of the ruleset: the class set instead of the set of numbered
// pods, and the network /0 instead of its halves.
func (l *lowered) raise(refused ruleset.Refused) ruleset.Refused {
	raised := ruleset.Refused{}
	for r, why := range refused {
		if c := classWith(r.Element, l.classes[r.Set]); c != nil {
			r.Set = c.set
		}
		if p := r.Element.Prefix; l.whole[r.Set] && p.IsValid() && p.Bits() == 1 {
			r.Element.Prefix = netip.PrefixFrom(p.Addr(), 0).Masked()
		}
		raised[r] = why
	}
	return raised
}

// numberedPods is the kind of a set with pods' addresses, each with the number of the pod's class. In a ruleset.Entry,
// the comment begins with this number. In the kernel, the entry's mark has the number.
const numberedPods ruleset.SetKind = "addresses with numbers of classes"

var types = map[ruleset.SetKind]string{
	ruleset.Addresses: ipset.HashIP, ruleset.Networks: ipset.HashNet, ruleset.AddressPorts: ipset.HashIPPort,
	ruleset.Ports: ipset.BitmapPort, ruleset.AddressLinks: ipset.HashNetIface,
}

func setType(k ruleset.SetKind) string { return cmp.Or(types[k], string(k)) }

func headerOf(s ruleset.Set) ipset.Header {
	if s.Kind == numberedPods {
		return ipset.Header{Name: s.Name, Type: ipset.HashIP, Family: s.Family, Marks: true}
	}
	return ipset.Header{Name: s.Name, Type: setType(s.Kind), Family: s.Family}
}

func kindOf(h ipset.Header) ruleset.SetKind {
	if h.Marks {
		return numberedPods
	}
	for k, t := range types {
		if t == h.Type {
			return k
		}
	}
	return ruleset.SetKind(h.Type)
}
