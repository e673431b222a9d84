package nftables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// pairOf has, for each shape that compares two addresses of a packet, the set in which nftables looks up the pair (see
// the function variants).
var pairOf = map[ruleset.Shape]string{ruleset.ToItself: conf.SelfSet, ruleset.HonestICMP: conf.ErrorsSet}

func pairSets(f conf.Family) []set {
	pair := func(name string, layout nftnl.Layout, words string) set {
		return set{
			Set:  nftnl.Set{Name: f.Set(name), Layout: layout, Comment: words},
			kind: ruleset.Addresses, role: ruleset.Peers,
		}
	}
	return []set{
		pair(conf.SelfSet, nftnl.AddressPair, "weir: this node's pods, as sender and receiver of a packet"),
		pair(conf.ErrorsSet, nftnl.InnerPair,
			"weir: this node's pods, as sender of an error and receiver of the packet inside"),
	}
}

func comment(text string) string { return nftnl.Comment(conf.Comment(text)) }

type loweredSet struct {
	layout   nftnl.Layout
	from, to ruleset.Entries
}

func (m *lowering) set(last lowering, f conf.Family, s ruleset.Set) set {
	layout := layoutOf(s)
	k := key{f, s.Name}
	done := last.sets[k].next(layout, s.Entries)
	m.sets[k] = done
	return set{
		Set:  nftnl.Set{Name: s.Name, Layout: layout, Comment: setComments[conf.KindOfSet(s.Name)]},
		kind: s.Kind, role: s.Role, opens: s.Opens, entries: done.to,
	}
}

func layoutOf(s ruleset.Set) nftnl.Layout {
	switch s.Kind {
	case ruleset.Networks:
		return nftnl.Network
	case ruleset.AddressPorts:
		return nftnl.AddressPort
	case ruleset.Ports:
		return nftnl.Port
	case ruleset.AddressLinks:
		if s.Name == s.Family.Set(conf.LinksSet) { // each entry has a link, and /0 as its network
			return nftnl.Link
		}
		return nftnl.AddressLink
	}
	return nftnl.Address
}

var setComments = map[conf.SetKind]string{
	conf.SetOfPods:         nftnl.PodsComment,
	conf.SetOfNetworks:     "weir: the networks of all pods",
	conf.SetOfChained:      "weir: pods whose network another plugin made",
	conf.SetOfLinks:        "weir: links that another plugin made for one pod each",
	conf.SetOfSenders:      "weir: pods on links that another plugin made",
	conf.SetOfSelected:     "weir: pods that a policy's selectors match",
	conf.SetOfMergedBlocks: "weir: networks of several policies",
	conf.SetOfBlocks:       "weir: networks of a policy",
	conf.SetOfNamedPorts:   "weir: pods with a named port, and its number there",
	conf.SetOfMerged:       "weir: pods of several policies",
	conf.SetOfNumbers:      "weir: a list of ports",
}

// next returns the set's present entries in a form that nftables can store. s is the result for earlier entries of the
// set. If possible, next lowers only the entries that differ from the earlier ones.
func (s loweredSet) next(layout nftnl.Layout, now ruleset.Entries) loweredSet {
	if s.layout != layout {
		s = loweredSet{}
	}
	n := loweredSet{layout, now, now}
	switch {
	case layout == nftnl.Link:
		n.to = ruleset.Entries{}
		for e := range now.All() {
			n.to = n.to.With(ruleset.Entry{Element: ruleset.Element{Link: e.Link}, Comment: comment(e.Comment)})
		}
		return n
	case layout == nftnl.Network && nested(now):
		n.to = outermost(now)
		return n
	case layout == nftnl.Network && s.from.Len() != s.to.Len(): // s.to lacks nested networks, which may be needed now
		s = loweredSet{}
	}
	shared := s.from.Same(s.to)
	for c := range s.from.Diff(now) {
		shared = shared && (!c.Has || comment(c.Now) == c.Now)
	}
	if shared {
		return n
	}
	n.to = s.to
	for c := range s.from.Diff(now) {
		if !c.Has {
			n.to = n.to.Without(c.Key)
		} else {
			n.to = n.to.With(ruleset.Entry{Element: c.Key, Comment: comment(c.Now)})
		}
	}
	return n
}

func nested(entries ruleset.Entries) bool {
	var outer netip.Prefix
	for e := range entries.All() {
		if outer.IsValid() && outer.Contains(e.Prefix.Addr()) {
			return true
		}
		outer = e.Prefix
	}
	return false
}

// outermost leaves out networks that are inside of other networks, because the kernel refuses overlapping networks.
func outermost(entries ruleset.Entries) ruleset.Entries {
	var kept []ruleset.Entry
	for e := range entries.All() {
		if n := len(kept); n == 0 || !kept[n-1].Prefix.Contains(e.Prefix.Addr()) {
			e.Comment = comment(e.Comment)
			kept = append(kept, e)
		}
	}
	return ruleset.EntriesOf(kept...)
}

func (s set) elementOf(e ruleset.Entry) nftnl.Element {
	to := nftnl.Element{Prefix: e.Prefix, Port: e.Port, Link: e.Link, Comment: e.Comment}
	if e.Proto != "" {
		to.Proto = numberOf(e.Proto)
	}
	if s.Layout == nftnl.Verdicts {
		to.Verdict, to.Comment = verdictIn(e.Comment)
	}
	return to
}

func entryOf(layout nftnl.Layout, e nftnl.Element) ruleset.Entry {
	to := ruleset.Entry{Comment: e.Comment}
	to.Prefix, to.Port, to.Link = e.Prefix, e.Port, e.Link
	if layout == nftnl.AddressPort {
		to.Proto = protocolOf(e.Proto)
	}
	if layout == nftnl.Verdicts {
		to.Comment = valueOf(e.Verdict, e.Comment)
	}
	return to
}

func protocolOf(number uint8) ruleset.Protocol {
	for p, n := range numbers {
		if n == number {
			return p
		}
	}
	return ruleset.Protocol(strconv.Itoa(int(number)))
}

func (s set) elements() []nftnl.Element {
	all := make([]nftnl.Element, 0, s.entries.Len())
	for e := range s.entries.All() {
		all = append(all, s.elementOf(e))
	}
	return all
}

func (t *table) find(name string) (set, bool) {
	i, ok := slices.BinarySearchFunc(t.sets, name, func(s set, name string) int { return strings.Compare(s.Name, name) })
	if !ok {
		return set{}, false
	}
	return t.sets[i], true
}

// Sets returns the sets and maps that the driver makes in the kernel for the ruleset. It doesn't read the kernel.
func (*Driver) Sets(r ruleset.Ruleset) (all []netfilter.KernelSet) {
	for _, s := range r.Sets {
		if s.Role == ruleset.Members {
			all = netfilter.AddClass(all, s.Family.Set(mapOf(s.Dispatch)), nftnl.Verdicts.In(s.Family), s)
		}
	}
	add := func(name string, layout nftnl.Layout, f conf.Family, n int) {
		all = append(all, netfilter.KernelSet{Name: name, Type: layout.In(f), Entries: n})
	}
	used, lists := uses(r)
	for _, s := range r.Sets {
		switch {
		case s.Role == ruleset.Members:
		case s.Kind == ruleset.Ports:
			for _, f := range conf.Families {
				if used[key{f, s.Name}] {
					add(s.Name, nftnl.Port, f, s.Entries.Len())
				}
			}
		case layoutOf(s) == nftnl.Network && nested(s.Entries):
			add(s.Name, nftnl.Network, s.Family, outermost(s.Entries).Len())
		default:
			add(s.Name, layoutOf(s), s.Family, s.Entries.Len())
		}
		if s.Name == s.Family.Set(conf.PodsSet) {
			for _, pair := range pairSets(s.Family) {
				if used[key{s.Family, pair.Name}] {
					add(pair.Name, pair.Layout, s.Family, s.Entries.Len())
				}
			}
		}
	}
	for k, s := range lists {
		add(s.Name, s.Layout, k.family, s.entries.Len())
	}
	return all
}

// uses returns two kinds of sets. used has the sets of ports and of pairs that the rules look up. lists has the sets
// that the lowering makes from the rules' lists of ports.
func uses(r ruleset.Ruleset) (used map[key]bool, lists map[key]set) {
	used, lists = map[key]bool{}, map[key]set{}
	for _, c := range r.Chains {
		if _, ok := hooks[c.Hook]; c.Hook != "" && !ok {
			continue
		}
		for i := range c.Rules {
			r := &c.Rules[i]
			if name := pairOf[r.Shape]; name != "" {
				used[key{c.Family, c.Family.Set(name)}] = true
			}
			for _, m := range r.Sets {
				if m.By == ruleset.DestinationPort {
					used[key{c.Family, m.Name}] = true
				}
			}
			if len(r.Ports) > 1 {
				_, own := splitPorts(rule{Rule: *r})
				for _, s := range own {
					lists[key{c.Family, s.Name}] = s
				}
			}
		}
	}
	return used, lists
}
