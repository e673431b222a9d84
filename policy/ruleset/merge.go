package ruleset

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/weir-net/weir/conf"
)

// Bounds bound what is merged.
type Bounds struct {
	// Sets is a number of sets whose look-ups one by one are cheap enough. Sets that aren't merged are shared between
	// classes of pods.
	Sets int
	// Large is a number of entries. Sets with more are not merged as long as there are no more than Sets look-ups.
	Large int
	// Lists is a number of lists of ports that are compared one by one in less time than a look-up takes. An entry with a
	// port costs more than one without: when a pod ends, whole sets with ports are read to find its entries.
	Lists int
	// ListLen is the greatest number of ports in a list of which each is looked up together with an address.
	ListLen int
	// SetLen is the greatest number of entries of a set that is merged. Each class of pods has a copy of them.
	SetLen int
	// Entries is the greatest number of entries of all merged sets. It bounds the kernel's memory for them, some 200
	// bytes for each entry, and the time to write all of them.
	Entries int
	// Pairs is the greatest number of entries with ports.
	Pairs int
}

// UsualBounds returns the bounds of an agent. The most entries take 25 MB of the kernel's memory, and 1.5 s to write.
func UsualBounds() Bounds {
	return Bounds{Sets: 3, Large: 1 << 8, Lists: 8, ListLen: 16, SetLen: 1 << 12, Entries: 1 << 17, Pairs: 1 << 14}
}

// class returns the class of a set with n entries. What is merged depends on nothing else, as long as there is room.
func (b Bounds) class(n int) int {
	switch {
	case n > b.SetLen:
		return tooLarge
	case n > b.Large:
		return bits.Len(uint(n))
	}
	return 0
}

// tooLarge is the class of sets that are not merged.
const tooLarge = 64

// Merge returns a ruleset that allows the same packets with fewer look-ups in sets. It merges rules of a chain that
// differ only in the set of their peers into one rule, which looks up a merged set: the union of these sets. So the
// first packet of a connection to a pod under 1,000 policies needs a few look-ups instead of 1,000. Sets that no rule
// needs any more are left out.
//
//   - If more than Bounds.Sets sets of peers belong to the same protocol and ports, the rules with sets of addresses
//     become one rule, and those with sets of networks another. A few large sets stay apart.
//   - If the rules of one protocol have more than Bounds.Lists different lists of ports, those with sets of addresses
//     become one rule, which looks up the address together with the port. Longer lists don't count.
//   - If there isn't room for all merged sets, the smallest come first, and the other rules stay as they are.
//   - Nothing is merged into a rule or set that the kernel has refused. So the kernel refuses the rules that would be
//     merged one by one, and each problem has its own object and field.
//
// Merge is the specification of a Merger.
func Merge(r Ruleset, refused Refused) Ruleset { return UsualBounds().Merge(r, refused) }

// Merge does the same as the function Merge, with these bounds.
func (b Bounds) Merge(r Ruleset, refused Refused) Ruleset {
	d := b.decide(r, refused, nil)
	return d.apply(r, func(s *mergedSet) Entries {
		var all []Entry
		for _, p := range s.parts {
			for e := range d.sets[p.set].Entries.All() {
				all = p.add(all, e)
			}
		}
		return EntriesOf(all...)
	})
}

// decision says which rules of a ruleset are merged.
type decision struct {
	sets   map[string]*Set // of the ruleset, by name
	merges []*merge
	merged []*mergedSet // in order of their names
	gone   map[string]bool
	groups map[chainName]groups // by chain

	// fit is true if nothing was left out because there was no room for it. entries and pairs are how much is needed, and
	// weights how much of that each entry of a set needs.
	fit            bool
	entries, pairs int
	weights        map[string]weight
}

// weight is how many entries of merged sets, and how many of them with ports, there are for each entry of a set.
type weight struct{ entries, pairs int }

// decide decides which rules of the ruleset are merged. last is an earlier decision, or nil: the groups of a chain's
// rules are still the same if the chain is.
func (b Bounds) decide(r Ruleset, refused Refused, last *decision) *decision {
	d := &decision{
		sets: make(map[string]*Set, len(r.Sets)), groups: map[chainName]groups{}, fit: true,
		gone: map[string]bool{}, weights: map[string]weight{},
	}
	for i := range r.Sets {
		d.sets[r.Sets[i].Name] = &r.Sets[i]
	}
	for i, c := range r.Chains {
		if c.Hook != "" {
			continue
		}
		key := chainName{c.Family, c.Name}
		g := groups{}
		if last != nil {
			g = last.groups[key]
		}
		if !g.are(c.Rules, d.sets) {
			g = b.groups(c, d.sets)
		}
		d.groups[key] = g
		for _, m := range b.merges(g, c.Family, d, refused) {
			m.chain = i
			d.merges = append(d.merges, m)
		}
	}
	b.cut(d)
	d.name(r)
	d.refuse(refused)
	d.forget(r)
	return d
}

// cut leaves out the largest merges until the rest have room.
func (b Bounds) cut(d *decision) {
	for _, m := range d.merges {
		d.entries += m.amount
		pairs := 0
		if m.kind == AddressPorts {
			d.pairs += m.amount
			pairs = 1
		}
		for _, p := range m.parts {
			w := d.weights[p.set]
			d.weights[p.set] = weight{w.entries + p.times(), w.pairs + pairs*p.times()}
		}
	}
	if d.entries <= b.Entries && d.pairs <= b.Pairs {
		return
	}
	d.fit = false
	bySize := slices.Clone(d.merges)
	slices.SortStableFunc(bySize, func(x, y *merge) int { return cmp.Compare(x.amount, y.amount) })
	keep := map[*merge]bool{}
	entries, pairs := 0, 0
	for _, m := range bySize {
		with := pairs
		if m.kind == AddressPorts {
			with += m.amount
		}
		if entries+m.amount <= b.Entries && with <= b.Pairs {
			entries, pairs, keep[m] = entries+m.amount, with, true
		}
	}
	d.merges = slices.DeleteFunc(d.merges, func(m *merge) bool { return !keep[m] })
}

// name gives the merged sets their names. A name is a hash of the rule's conditions and of the first of the sets that
// are merged. So an added or deleted policy mostly changes only some entries of the set, and not its name. If several
// merged sets would have one name, the largest gets it, and the others get hashes of all that they have.
//
// While a set with the same name gets other entries for another chain, nothing opens: like each set of peers, it loses
// entries before the rules change, and gets new ones after that. The name stands for the same conditions in both.
func (d *decision) name(r Ruleset) {
	byKey := map[string][]*mergedSet{}
	for _, m := range d.merges {
		f := r.Chains[m.chain].Family
		key := fmt.Sprintf("%s %s %s %q", f, m.kind, m.rule.Key(), m.parts[0])
		same := slices.IndexFunc(byKey[key], func(s *mergedSet) bool { return slices.Equal(s.parts, m.parts) })
		if same < 0 {
			same = len(byKey[key])
			byKey[key] = append(byKey[key], &mergedSet{kind: m.kind, family: f, parts: m.parts})
		}
		m.set = byKey[key][same]
	}
	for key, sets := range byKey {
		slices.SortFunc(sets, func(x, y *mergedSet) int {
			return cmp.Or(cmp.Compare(len(y.parts), len(x.parts)), slices.CompareFunc(x.parts, y.parts, part.compare))
		})
		for i, s := range sets {
			text := key
			if i > 0 {
				text = fmt.Sprintf("%s of %q", key, s.parts)
			}
			prefix := conf.MergedSets
			if s.kind == Networks {
				prefix = conf.MergedBlockSets
			}
			s.name = s.family.Set(prefix + Hash(text))
		}
		d.merged = append(d.merged, sets...)
	}
	slices.SortFunc(d.merged, func(x, y *mergedSet) int { return cmp.Compare(x.name, y.name) })
	for _, m := range d.merges {
		m.rule.Sets[m.peers].Name = m.set.name
	}
}

// refuse leaves out the merges whose set or rule the kernel refuses.
func (d *decision) refuse(refused Refused) {
	if len(refused) == 0 {
		return
	}
	sets := map[string]bool{}
	for part := range refused {
		sets[part.Set] = true
	}
	d.merges = slices.DeleteFunc(d.merges, func(m *merge) bool {
		why, _ := refused.Rule(m.set.family, m.rule)
		return sets[m.set.name] || refused.Set(m.set.family, m.kind, m.set.name) != "" || why != ""
	})
	d.merged = slices.DeleteFunc(d.merged, func(s *mergedSet) bool {
		return !slices.ContainsFunc(d.merges, func(m *merge) bool { return m.set == s })
	})
}

// forget finds the sets that no rule needs any more.
func (d *decision) forget(r Ruleset) {
	replaced := map[int]map[int]bool{}
	for _, m := range d.merges {
		for _, p := range m.parts {
			d.gone[p.set] = true
		}
		if replaced[m.chain] == nil {
			replaced[m.chain] = map[int]bool{}
		}
		for _, i := range m.rules {
			replaced[m.chain][i] = true
		}
	}
	if len(d.gone) == 0 {
		return
	}
	for i, c := range r.Chains {
		for n := range c.Rules {
			if replaced[i][n] {
				continue
			}
			for _, m := range c.Rules[n].Sets {
				delete(d.gone, m.Name)
			}
		}
	}
}

// apply returns the ruleset with the merged rules. entries returns the entries of a merged set.
func (d *decision) apply(r Ruleset, entries func(*mergedSet) Entries) Ruleset {
	if len(d.merges) == 0 {
		return r
	}
	sets := make([]Set, 0, len(r.Sets)-len(d.gone)+len(d.merged))
	for _, s := range r.Sets {
		if !d.gone[s.Name] {
			sets = append(sets, s)
		}
	}
	for _, m := range d.merged {
		sets = append(sets, Set{
			Name: m.name, Kind: m.kind, Family: m.family, Role: Peers, Opens: true, Entries: entries(m),
		})
	}
	slices.SortFunc(sets, func(a, b Set) int { return cmp.Compare(a.Name, b.Name) })
	r.Sets, r.Chains = sets, slices.Clone(r.Chains)
	for rest := d.merges; len(rest) > 0; {
		c := &r.Chains[rest[0].chain]
		n := slices.IndexFunc(rest, func(m *merge) bool { return m.chain != rest[0].chain })
		if n < 0 {
			n = len(rest)
		}
		c.Rules = replace(c.Rules, rest[:n])
		rest = rest[n:]
	}
	return r
}

// replace returns the rules with each merge's rule in the place of the first rule that the merge replaces.
func replace(rules []Rule, merges []*merge) []Rule {
	by := map[int]*merge{}
	for _, m := range merges {
		for _, i := range m.rules {
			by[i] = m
		}
	}
	var all []Rule
	for i, r := range rules {
		switch m := by[i]; {
		case m == nil:
			all = append(all, r)
		case m.rules[0] == i:
			all = append(all, m.rule)
		}
	}
	return all
}
