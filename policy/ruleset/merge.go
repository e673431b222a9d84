package ruleset

import "math/bits"

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
	// Entries is how many entries all merged sets together may have. It bounds the kernel's memory for them, some 200
	// bytes for each entry, and the time to write all of them.
	Entries int
	// Pairs is how many of these entries may have ports.
	Pairs int
}

// UsualBounds returns the bounds of an agent. The most entries take 25 MB of the kernel's memory, and 1.5 s to write.
func UsualBounds() Bounds {
	return Bounds{Sets: 3, Large: 1 << 8, Lists: 8, ListLen: 16, SetLen: 1 << 12, Entries: 1 << 17, Pairs: 1 << 14}
}

// class returns the size class of a set with n entries: 0 up to Large, tooLarge above SetLen, and the bits of n between
// them. As long as there is room, sets of one class are treated alike, whatever their exact sizes.
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
//   - Nothing is merged into a rule or set that the kernel has refused. So the rules stay apart, the kernel refuses
//     each by itself, and each problem has its own object and field.
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
