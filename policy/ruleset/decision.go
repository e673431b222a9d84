package ruleset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weir-net/weir/conf"
)

type decision struct {
	plans map[chainName]*chainPlan
	// weights says for each set how many copies of its entries the merged sets have: a merged set has one copy, or one
	// copy for each port. staying says for each set how many chains look up the set itself, and not a merged set.
	// entries is the sum of the sizes of all merged sets, rounded up. pairs is the sum of the sizes of the merged sets
	// with ports, rounded up.
	weights        map[string]weight
	entries, pairs int
	staying        map[string]int
	fit            bool

	merges []*merge     // in the order of the chains
	merged []*mergedSet // ordered by name
	// needed has the sets of the merges that were left out, because the chains' rules still look up these sets.
	needed map[string]bool
}

type weight struct{ entries, pairs int }

func (b Bounds) decide(r Ruleset, refused Refused) *decision {
	d := &decision{plans: map[chainName]*chainPlan{}, weights: map[string]weight{}, staying: map[string]int{}}
	d.revise(b, nil, r, refused)
	return d
}

// revise plans the chains that have changed since the last decision. The result is valid only if all merged sets are
// within the bounds (d.fit), both before the call and after it. Otherwise the caller must call decide.
func (d *decision) revise(b Bounds, was []Set, r Ruleset, refused Refused) {
	touched := map[string]bool{}
	for x, y := range pairs(was, r.Sets) {
		name, before, after := "", 0, 0
		if x != nil {
			name, before = x.Name, x.Entries.Len()
		}
		if y != nil {
			name, after = y.Name, y.Entries.Len()
		}
		if x == nil || y == nil || !x.like(y) || b.sizeClass(before) != b.sizeClass(after) {
			touched[name] = true
		}
		w, by := d.weights[name], rounded(after)-rounded(before)
		d.entries, d.pairs = d.entries+by*w.entries, d.pairs+by*w.pairs
	}
	of, last := entriesIn(r.Sets), d.plans
	d.plans, d.fit, d.merges = make(map[chainName]*chainPlan, len(r.Chains)), true, d.merges[:0:0]
	for i, c := range r.Chains {
		key := chainName{c.Family, c.Name}
		p := last[key]
		if !p.isFor(c) || p.lookUp(touched) {
			d.count(p, -1, of)
			p = b.plan(c, r.Sets, refused)
			d.count(p, 1, of)
		}
		delete(last, key)
		d.plans[key], d.fit = p, d.fit && p.fit
		for _, m := range p.merges {
			m.chain = i
			d.merges = append(d.merges, m)
		}
	}
	for _, p := range last {
		d.count(p, -1, of)
	}
	d.needed = map[string]bool{}
	if d.entries > b.Entries || d.pairs > b.Pairs {
		d.fit = false
		d.cut(b, of)
	}
	d.name(r)
	d.refuse(refused)
}

func pairs(was, now []Set) func(yield func(x, y *Set) bool) {
	return func(yield func(x, y *Set) bool) {
		for i, k := 0, 0; i < len(was) || k < len(now); {
			var x, y *Set
			var order int
			switch {
			case i == len(was):
				order = 1
			case k == len(now):
				order = -1
			default:
				order = cmp.Compare(was[i].Name, now[k].Name)
			}
			if order <= 0 {
				x, i = &was[i], i+1
			}
			if order >= 0 {
				y, k = &now[k], k+1
			}
			if !yield(x, y) {
				return
			}
		}
	}
}

func (s *Set) like(o *Set) bool {
	return s.Name == o.Name && s.Kind == o.Kind && s.Family == o.Family && s.Role == o.Role && s.Dispatch == o.Dispatch &&
		s.Opens == o.Opens
}

func (d *decision) count(p *chainPlan, by int, of func(set string) Entries) {
	if p == nil {
		return
	}
	for _, name := range p.staying {
		if d.staying[name] += by; d.staying[name] == 0 {
			delete(d.staying, name)
		}
	}
	for _, m := range p.merges {
		for _, part := range m.parts {
			w, n := d.weights[part.set], by*part.times()
			size := rounded(of(part.set).Len())
			w.entries, d.entries = w.entries+n, d.entries+n*size
			if m.kind == AddressPorts {
				w.pairs, d.pairs = w.pairs+n, d.pairs+n*size
			}
			if d.weights[part.set] = w; w.entries == 0 {
				delete(d.weights, part.set)
			}
		}
	}
}

func (d *decision) cut(b Bounds, of func(set string) Entries) {
	type sized struct {
		*merge
		amount int
	}
	var bySize []sized
	for _, m := range d.merges {
		s := sized{m, 0}
		for _, p := range m.parts {
			s.amount += p.times() * rounded(of(p.set).Len())
		}
		bySize = append(bySize, s)
	}
	slices.SortStableFunc(bySize, func(x, y sized) int { return cmp.Compare(x.amount, y.amount) })
	keep := map[*merge]bool{}
	entries, pairs := 0, 0
	for _, s := range bySize {
		with := pairs
		if s.kind == AddressPorts {
			with += s.amount
		}
		if entries+s.amount <= b.Entries && with <= b.Pairs {
			entries, pairs, keep[s.merge] = entries+s.amount, with, true
		}
	}
	d.leaveOut(func(m *merge) bool { return !keep[m] })
}

func (d *decision) leaveOut(left func(*merge) bool) {
	d.merges = slices.DeleteFunc(d.merges, func(m *merge) bool {
		if !left(m) {
			return false
		}
		for _, p := range m.parts {
			d.needed[p.set] = true
		}
		return true
	})
}

// name gives each merged set a name. The name has a hash of the rule's conditions and the first set. So a change of
// policies rarely changes the name.
//
// A merged set may get a name that another chain's merged set had before. Even then, only packets that the policies
// allow pass: the set loses old entries before the rules change, and gets new entries afterwards.
func (d *decision) name(r Ruleset) {
	byKey := map[string][]*mergedSet{}
	for _, m := range d.merges {
		same := slices.IndexFunc(byKey[m.key], func(s *mergedSet) bool { return slices.Equal(s.parts, m.parts) })
		if same < 0 {
			same = len(byKey[m.key])
			s := &mergedSet{kind: m.kind, family: r.Chains[m.chain].Family, parts: m.parts}
			byKey[m.key] = append(byKey[m.key], s)
		}
		m.set = byKey[m.key][same]
	}
	d.merged = nil
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
		if match := &m.rule.Sets[m.peers]; match.Name != m.set.name {
			m.rule.Sets = slices.Clone(m.rule.Sets) // a copy, because earlier rulesets have the old list
			m.rule.Sets[m.peers].Name = m.set.name
			m.plan.merged = nil
		}
	}
}

func (d *decision) refuse(refused Refused) {
	if len(refused) == 0 {
		return
	}
	sets := map[string]bool{}
	for part := range refused {
		sets[part.Set] = true
	}
	d.leaveOut(func(m *merge) bool {
		why, _ := refused.Rule(m.set.family, m.rule)
		return sets[m.set.name] || refused.Set(m.set.family, m.kind, m.set.name) != "" || why != ""
	})
	used := map[*mergedSet]bool{}
	for _, m := range d.merges {
		used[m.set] = true
	}
	d.merged = slices.DeleteFunc(d.merged, func(s *mergedSet) bool { return !used[s] })
}

func (d *decision) apply(r Ruleset, entries func(*mergedSet) Entries) Ruleset {
	if len(d.merges) == 0 {
		return r
	}
	sets := make([]Set, 0, len(r.Sets)+len(d.merged))
	for _, s := range r.Sets {
		gone := d.weights[s.Name].entries > 0 && d.staying[s.Name] == 0 && !d.needed[s.Name]
		if !gone {
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
	byChain := map[int][]*merge{}
	for _, m := range d.merges {
		byChain[m.chain] = append(byChain[m.chain], m)
	}
	for i := range maps.Keys(byChain) {
		r.Chains[i].Rules = byChain[i][0].plan.with(byChain[i])
	}
	return r
}
