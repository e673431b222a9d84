package ruleset

import "math/bits"

// Bounds bound what is merged.
type Bounds struct {
	// Sets is a number of sets that are cheap enough to look up one by one. Sets that aren't merged are shared between
	// classes of pods.
	Sets int
	// Large is a number of entries. Sets with more stay unmerged, as long as there are no more than Sets look-ups.
	Large int
	// Lists is a number of lists of ports that are cheap to compare one by one. Merged entries with ports cost more:
	// when a pod ends, whole sets are read to find its entries.
	Lists int
	// ListLen is the most ports of a list that are looked up together with an address.
	ListLen int
	// SetLen is the most entries of a set that is merged. Each class of pods has a copy of them.
	SetLen int
	// Entries is the most entries of all merged sets together. It bounds the kernel's memory (some 200 bytes for each)
	// and the time to write them.
	Entries int
	// Pairs is how many of these entries may have ports.
	Pairs int
}

// UsualBounds returns the bounds of an agent. The most entries take 25 MB of the kernel's memory, and 1.5 s to
// write.
func UsualBounds() Bounds {
	return Bounds{Sets: 3, Large: 1 << 8, Lists: 8, ListLen: 16, SetLen: 1 << 12, Entries: 1 << 17, Pairs: 1 << 14}
}

// class returns the size class of a set with n entries. While there is room, sets of one class are treated alike.
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

// Merge returns a ruleset that allows the same packets with fewer look-ups in sets. Rules of a chain that differ
// only in the set of their peers become one rule. It looks up a merged set, the union of these sets. So a pod under
// 1,000 policies needs a few look-ups instead of 1,000. Sets that no rule needs any more are left out.
//
//   - If more than Bounds.Sets sets belong to the same protocol and ports, sets of addresses are merged.
//     Sets of networks are merged too. A few large sets stay apart.
//   - If the rules of a protocol have more than Bounds.Lists different lists of ports, address and port are looked
//     up together. Longer lists don't count.
//   - If there isn't room for all merged sets, the smallest come first.
//   - What the kernel has refused isn't merged. Each problem then has its own object and field.
//
// Merge is the specification of a Merger.
func Merge(r Ruleset, refused Refused) Ruleset { return UsualBounds().Merge(r, refused) }

// Merge does the same as the function Merge, with these bounds.
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
