package ruleset

import "math/bits"

// Bounds limit what is merged.
type Bounds struct {
	// Sets is how many sets are cheap enough to look up one by one. Classes of pods can share unmerged sets.
	Sets int
	// Large is how many entries a large set has. Up to Sets large sets stay unmerged.
	Large int
	// Lists is how many lists of ports are cheap to compare one by one.
	Lists int
	// ListLen is the most ports of a list that are looked up together with an address.
	ListLen int
	// SetLen is the most entries of a set that is merged. Each class of pods has a copy of them.
	SetLen int
	// Entries is the most entries of all merged sets together. Each takes some 200 bytes of the kernel's
	// memory.
	Entries int
	// Pairs is how many entries of merged sets may have ports. When a pod ends, whole sets are read to find its
	// pairs.
	Pairs int
}

// UsualBounds returns the bounds of an agent: at most 25 MB of the kernel's memory, and 1.5 s to write.
func UsualBounds() Bounds {
	return Bounds{Sets: 3, Large: 1 << 8, Lists: 8, ListLen: 16, SetLen: 1 << 12, Entries: 1 << 17, Pairs: 1 << 14}
}

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

// Merge returns a ruleset that allows the same packets with fewer look-ups in sets. Rules of a chain that
// differ only in the set of their peers become one rule with a merged set. So a pod under 1,000 policies needs
// a few look-ups instead of 1,000.
//
//   - Sets are merged if more than Bounds.Sets of them belong to the same protocol and ports.
//   - Address and port are looked up together if a protocol has more than Bounds.Lists lists of ports.
//   - If there isn't room for all merged sets, the smallest come first.
//   - What the kernel has refused isn't merged.
//
// Merge is the specification of a Merger.
func Merge(r Ruleset, refused Refused) Ruleset { return UsualBounds().Merge(r, refused) }

// Merge does the same as the function Merge, with the bounds b.
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
