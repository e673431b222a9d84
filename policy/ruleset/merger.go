package ruleset

import (
	"maps"
	"slices"
)

// Merger merges the rulesets of one node, one after the other. The results are those of Bounds.Merge, but a small
// change takes little time. Only one goroutine may use a Merger. The rulesets that it returns never change.
type Merger struct {
	bounds   Bounds
	last     Ruleset // the last ruleset that Merge was given
	refused  Refused
	decision *decision
	sets     map[string]*countedSet // merged sets, by name
	// users has, by the name of a set, the merged sets that contain the set's entries. It is nil if it must be computed.
	users map[string][]*countedSet
	out   Ruleset
}

func NewMerger(b Bounds) *Merger { return &Merger{bounds: b} }

// Merge returns the same as Bounds.Merge. It is fastest if the ruleset shares memory with the last ruleset that Merge
// was given.
func (m *Merger) Merge(r Ruleset, refused Refused) Ruleset {
	changed, same := changes(m.last.Sets, r.Sets)
	switch {
	case m.decision == nil || !same || !shared(m.last.Chains, r.Chains) || !maps.Equal(m.refused, refused),
		m.outgrown(changed, r):
		m.decide(r, refused)
	case len(m.decision.merges) == 0:
		m.out.Sets = r.Sets
	case len(changed) > 0:
		m.refill(changed, r)
	}
	m.last, m.refused = r, refused
	m.out.Classes, m.out.Problems = r.Classes, r.Problems
	return m.out
}

func changes(was, now []Set) (changed []int, same bool) {
	if len(was) != len(now) {
		return nil, false
	}
	if shared(was, now) {
		return nil, true
	}
	for i := range now {
		if !was[i].like(&now[i]) {
			return nil, false
		}
		if !was[i].Entries.Same(now[i].Entries) {
			changed = append(changed, i)
		}
	}
	return changed, true
}

func shared[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (m *Merger) outgrown(changed []int, r Ruleset) bool {
	d := m.decision
	entries, pairs := d.entries, d.pairs
	for _, i := range changed {
		was, now := m.last.Sets[i].Entries.Len(), r.Sets[i].Entries.Len()
		by := rounded(now) - rounded(was)
		if m.bounds.sizeClass(was) != m.bounds.sizeClass(now) || by != 0 && !d.fit {
			return true
		}
		w := d.weights[r.Sets[i].Name]
		entries, pairs = entries+by*w.entries, pairs+by*w.pairs
	}
	if entries > m.bounds.Entries || pairs > m.bounds.Pairs {
		return d.fit
	}
	d.entries, d.pairs = entries, pairs
	return false
}

func (m *Merger) decide(r Ruleset, refused Refused) {
	d := m.decision
	if d != nil && d.fit && maps.Equal(m.refused, refused) {
		d.revise(m.bounds, m.last.Sets, r, refused)
	}
	if d == nil || !d.fit || !maps.Equal(m.refused, refused) {
		m.decision = m.bounds.decide(r, refused)
	}
	last := m.sets
	m.sets, m.users = map[string]*countedSet{}, nil
	of := entriesIn(r.Sets)
	changed := map[string]bool{}
	for x, y := range pairs(m.last.Sets, r.Sets) {
		if x == nil || y != nil && !x.Entries.Same(y.Entries) {
			changed[y.Name] = true
		} else if y == nil {
			changed[x.Name] = true
		}
	}
	m.out = m.decision.apply(r, func(s *mergedSet) Entries {
		c := last[s.name]
		switch {
		case c == nil:
			c = &countedSet{mergedSet: s}
			c.update(of)
		case shared(c.parts, s.parts) && len(changed) < len(s.parts):
			c.mergedSet = s
			for name := range changed {
				c.updateWith(name, of(name))
			}
		default:
			c.mergedSet = s
			c.update(of)
		}
		m.sets[s.name] = c
		return c.entries
	})
}

func (m *Merger) usersOf(set string) []*countedSet {
	if m.users == nil {
		m.users = map[string][]*countedSet{}
		for _, c := range m.sets {
			for i, p := range c.parts {
				if i == 0 || c.parts[i-1].set != p.set {
					m.users[p.set] = append(m.users[p.set], c)
				}
			}
		}
	}
	return m.users[set]
}

func (m *Merger) refill(changed []int, r Ruleset) {
	m.out.Sets = slices.Clone(m.out.Sets)
	for _, i := range changed {
		s := r.Sets[i]
		if at, ok := find(m.out.Sets, s.Name); ok {
			m.out.Sets[at].Entries = s.Entries
		}
		for _, c := range m.usersOf(s.Name) {
			c.updateWith(s.Name, s.Entries)
			at, _ := find(m.out.Sets, c.name)
			m.out.Sets[at].Entries = c.entries
		}
	}
}

func find(sets []Set, name string) (int, bool) {
	first, last := 0, len(sets)
	for first < last { // slices.BinarySearchFunc would copy a Set for each comparison
		if middle := (first + last) / 2; sets[middle].Name < name {
			first = middle + 1
		} else {
			last = middle
		}
	}
	return first, first < len(sets) && sets[first].Name == name
}

func entriesIn(sets []Set) func(name string) Entries {
	return func(name string) Entries {
		i, ok := find(sets, name)
		if !ok {
			return Entries{}
		}
		return sets[i].Entries
	}
}
