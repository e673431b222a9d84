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

// lowered is a ruleset in the words and within the limits of ipset and iptables.
type lowered struct {
	sets   []ruleset.Set
	chains []chain
	jumps  []jump
	// whole has the names of the sets with an entry for all addresses (/0). ipset needs two entries for that entry.
	whole map[string]bool
}

// chain is one of weir's chains in a table. Each family has tables of its own.
type chain struct {
	family      conf.Family
	table, name string
	lines       []string
	rules       []ruleset.Rule // the rules that the lines are lowered from
	dispatch    []string       // the sets that the rules match, in their order
}

// jump is a rule in a built-in chain that leads to one of weir's chains. If first is true, it must be the first rule
// of the chain. Otherwise it is the last rule, or comes directly before the rule with which the chain refuses all
// remaining packets.
type jump struct {
	family       conf.Family
	table, chain string
	first        bool
	to           string
	line         string
}

// place is the built-in chain of iptables for a hook of the ruleset, and whether weir's rule must be first there.
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

// checks is the table in which packets are checked. It has the built-in chains with weir's jumps, and all chains that
// these jumps lead to.
const checks = "mangle"

// lower returns the ruleset as sets of ipset and rules of iptables.
func lower(r ruleset.Ruleset) *lowered {
	l := &lowered{whole: map[string]bool{}}
	for _, s := range r.Sets {
		l.sets = append(l.sets, l.lowerSet(s))
	}
	for _, c := range r.Chains {
		at := chain{family: c.Family, table: checks, name: c.Name, rules: c.Rules, dispatch: c.Dispatch()}
		for _, rule := range c.Rules {
			if c.Hook == ruleset.AcceptForwarded {
				rule.Comment = "weir: judged in the " + checks + " table"
			}
			at.lines = append(at.lines, lowerRule(rule, c.Family)...)
		}
		if c.Hook != "" {
			p := places[c.Hook]
			at.table = p.table
			line := ruleText(ruleset.Rule{Comment: c.Comment, Action: ruleset.Jump, To: c.Name}, c.Family)
			l.jumps = append(l.jumps, jump{c.Family, p.table, p.chain, p.first, c.Name, line})
		}
		l.chains = append(l.chains, at)
	}
	slices.SortStableFunc(l.chains, func(a, b chain) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.table, b.table), cmp.Compare(a.name, b.name))
	})
	slices.SortStableFunc(l.jumps, func(a, b jump) int {
		return cmp.Or(cmp.Compare(a.family, b.family), inOrder(a.table)-inOrder(b.table), cmp.Compare(a.chain, b.chain))
	})
	return l
}

func inOrder(table string) int { return slices.Index(tablesUsed, table) }

// has reports whether the ruleset has chains for the family.
func (l *lowered) has(f conf.Family) bool {
	return slices.ContainsFunc(l.chains, func(c chain) bool { return c.family == f })
}

// chain returns the chain of that family, table and name; an empty one if there is none.
func (l *lowered) chain(f conf.Family, table, name string) chain {
	for _, c := range l.chains {
		if c.family == f && c.table == table && c.name == name {
			return c
		}
	}
	return chain{}
}

// lowerSet returns the set with entries that ipset can store. Comments become comments that the kernel keeps
// unchanged. The entry for all addresses becomes two halves, because sets of type hash:net can't have /0. A set that
// needs no change keeps its list of entries.
func (l *lowered) lowerSet(s ruleset.Set) ruleset.Set {
	for i, e := range s.Entries {
		comment := conf.Comment(e.Comment)
		halves := s.Kind == ruleset.Networks && e.Prefix.Bits() == 0
		if comment == e.Comment && !halves {
			continue
		}
		s.Entries = slices.Clone(s.Entries)
		s.Entries[i].Comment = comment
		for j := i + 1; j < len(s.Entries); j++ {
			s.Entries[j].Comment = conf.Comment(s.Entries[j].Comment)
		}
		if halves { // the entry comes first in the order, and no other entry has its address and size
			l.whole[s.Name] = true
			all := s.Entries[i]
			s.Entries = append(s.Entries[:i], s.Entries[i+1:]...)
			for _, half := range halvesOf(all.Prefix) {
				s.Entries = append(s.Entries, ruleset.Entry{Element: ruleset.Element{Prefix: half}, Comment: all.Comment})
			}
			s.Entries = ruleset.Order(s.Entries)
		}
		break
	}
	return s
}

func halvesOf(all netip.Prefix) [2]netip.Prefix {
	lower := netip.PrefixFrom(all.Addr(), 1)
	return [2]netip.Prefix{lower, netip.PrefixFrom(netipx.PrefixLastIP(lower).Next(), 1)}
}

// raise turns refused entries of ipset into the ruleset's entries that they were lowered from. If the set has an entry
// for all addresses, a refused half counts as a refusal of that entry.
func (l *lowered) raise(refused ruleset.Refused) ruleset.Refused {
	raised := ruleset.Refused{}
	for r, why := range refused {
		if p := r.Element.Prefix; l.whole[r.Set] && p.IsValid() && p.Bits() == 1 {
			r.Element.Prefix = netip.PrefixFrom(p.Addr(), 0).Masked()
		}
		raised[r] = why
	}
	return raised
}

// types are ipset's types for the kinds of sets.
var types = map[ruleset.SetKind]string{
	ruleset.Addresses: ipset.HashIP, ruleset.Networks: ipset.HashNet, ruleset.AddressPorts: ipset.HashIPPort,
	ruleset.Ports: ipset.BitmapPort, ruleset.AddressLinks: ipset.HashNetIface,
}

// SetType returns ipset's type for sets of the kind.
func (d *Driver) SetType(k ruleset.SetKind) string { return setType(k) }

func setType(k ruleset.SetKind) string { return cmp.Or(types[k], string(k)) }

// kindOf returns the kind of set that has this ipset type. If no kind has the type, kindOf returns the type's own name
// as the kind.
func kindOf(setType string) ruleset.SetKind {
	for k, t := range types {
		if t == setType {
			return k
		}
	}
	return ruleset.SetKind(setType)
}
