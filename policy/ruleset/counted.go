package ruleset

import (
	"cmp"
	"slices"
)

type countedSet struct {
	*mergedSet
	entries Entries
	counted map[part]Entries // entries of each part's set when the part was last counted
	// shared has each element that several parts of the merged set have. For each comment of the element, it has the
	// number of parts with this comment.
	shared map[Element][]tally
}

type tally struct {
	comment string
	parts   int
}

// update brings the set up to date with its parts. entriesOf returns the entries of a part's set.
func (c *countedSet) update(entriesOf func(set string) Entries) {
	if c.counted == nil {
		c.fill(entriesOf)
		return
	}
	is := make(map[part]bool, len(c.parts))
	for _, p := range c.parts {
		is[p] = true
	}
	for p := range c.counted {
		if !is[p] {
			c.count(p, Entries{})
			delete(c.counted, p)
		}
	}
	for _, p := range c.parts {
		c.count(p, entriesOf(p.set))
	}
}

func (c *countedSet) updateWith(set string, now Entries) {
	i, _ := slices.BinarySearchFunc(c.parts, set, func(p part, set string) int { return cmp.Compare(p.set, set) })
	for ; i < len(c.parts) && c.parts[i].set == set; i++ {
		c.count(c.parts[i], now)
	}
}

func (c *countedSet) fill(entriesOf func(set string) Entries) {
	c.counted, c.shared = make(map[part]Entries, len(c.parts)), map[Element][]tally{}
	var all []Entry
	for _, p := range c.parts {
		c.counted[p] = entriesOf(p.set)
		for e := range c.counted[p].All() {
			all = p.add(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	for rest := all; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Element == rest[0].Element {
			n++
		}
		if n > 1 {
			for _, e := range rest[:n] {
				c.shared[e.Element] = counting(c.shared[e.Element], e.Comment, 1)
			}
		}
		rest = rest[n:]
	}
	c.entries = EntriesOf(all...)
}

func (c *countedSet) count(p part, now Entries) {
	was := c.counted[p]
	if c.counted[p] = now; was.Same(now) {
		return
	}
	var elements []Entry
	for d := range was.Diff(now) {
		for _, e := range p.add(elements[:0], Entry{Element: d.Key}) {
			if d.Had {
				c.adjust(e.Element, d.Was, -1)
			}
			if d.Has {
				c.adjust(e.Element, d.Now, 1)
			}
		}
	}
}

// adjust changes the number of parts that have the element with this comment, by 1 or -1. The entry gets the
// alphabetically first of the parts' comments. If no part has the element any more, the entry is removed.
func (c *countedSet) adjust(e Element, comment string, by int) {
	tallies, isShared := c.shared[e]
	if !isShared {
		if has, ok := c.entries.Get(e); ok {
			tallies = []tally{{has, 1}}
		}
	}
	tallies = counting(tallies, comment, by)
	switch {
	case len(tallies) == 0:
		c.entries = c.entries.Without(e)
	default:
		c.entries = c.entries.With(Entry{Element: e, Comment: tallies[0].comment})
	}
	if len(tallies) > 1 || len(tallies) == 1 && tallies[0].parts > 1 {
		c.shared[e] = tallies
	} else if isShared {
		delete(c.shared, e)
	}
}

func counting(tallies []tally, comment string, by int) []tally {
	i, ok := slices.BinarySearchFunc(tallies, comment, func(t tally, comment string) int {
		return cmp.Compare(t.comment, comment)
	})
	if !ok {
		tallies = slices.Insert(tallies, i, tally{comment: comment})
	}
	if tallies[i].parts += by; tallies[i].parts == 0 {
		tallies = slices.Delete(tallies, i, i+1)
	}
	return tallies
}
