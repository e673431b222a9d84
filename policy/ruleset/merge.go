package ruleset

import "math/bits"

// Bounds has the limits within which sets are merged.
type Bounds struct {
	// Sets is the largest number of sets that may be looked up one by one. If there are more sets, they are merged. A
	// few look-ups take little time, and several classes of pods can use the same single set. Two
	// classes share a merged set only if it was made from the same single sets for both.
	Sets int
	// Large is the number of entries above which a set is large. Large sets stay single, those of the highest size class
	// first (see sizeClass), and by name within a class, until the single and the merged sets together need Sets
	// look-ups. The other large sets are merged.
	Large int
	// Lists is how many lists of ports may be compared one by one. A few comparisons take little time.
	Lists int
	// ListLen is the length of the longest list of ports that is looked up together with an address. Rules with longer
	// lists stay as they are.
	ListLen int
	// SetLen limits the size of sets that are merged, because each class of pods gets a copy of their entries. Larger
	// sets stay as they are.
	SetLen int
	// Entries limits the entries of all merged sets together. Each entry takes about 200 bytes of the kernel's memory.
	Entries int
	// Pairs limits the entries with ports in all merged sets together, because deleting a pod's entries with ports
	// requires reading whole sets.
	Pairs int
}

// UsualBounds returns the limits of an agent. With them, merged sets take at most 25 MB of the kernel's memory. Writing
// them takes at most 1.5 seconds.
func UsualBounds() Bounds {
	return Bounds{Sets: 3, Large: 1 << 8, Lists: 8, ListLen: 16, SetLen: 1 << 12, Entries: 1 << 17, Pairs: 1 << 14}
}

// sizeClass returns 0 for a set that isn't large, tooLarge for a set that isn't merged, and otherwise the number
// of binary digits of the set's size.
func (b Bounds) sizeClass(n int) int {
	switch {
	case n > b.SetLen:
		return tooLarge
	case n > b.Large:
		return bits.Len(uint(n))
	}
	return 0
}

// tooLarge is the size class of sets larger than Bounds.SetLen. Such sets aren't merged.
const tooLarge = 64

// Merge returns a ruleset that allows the same packets with fewer look-ups in sets. Rules of a chain that differ only
// in the set of their peers become one rule with a merged set. So a pod under 1,000 policies needs a few look-ups
// instead of 1,000.
//
//   - Sets are merged if rules with the same protocol and ports have more than Bounds.Sets sets.
//   - Address and port are looked up together if a protocol has more than Bounds.Lists lists of ports.
//   - If there isn't room for all merged sets, only the smallest are made. The rules of the others aren't merged.
//   - If the kernel has refused a merged set or its rule, the single sets and rules stay.
//
// Merge is the specification of a Merger: a Merger must give the same results.
func Merge(r Ruleset, refused Refused) Ruleset { return UsualBounds().Merge(r, refused) }

// Merge returns the same as the function Merge, but with the bounds b.
func (b Bounds) Merge(r Ruleset, refused Refused) Ruleset {
	of := entriesIn(r.Sets)
	return b.decide(r, refused).apply(r, func(s *mergedSet) Entries {
		var all []Entry
		for _, p := range s.parts {
			for e := range of(p.set).All() {
				all = p.add(all, e)
			}
		}
		return EntriesOf(all...)
	})
}
