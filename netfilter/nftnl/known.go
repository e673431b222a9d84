package nftnl

import "slices"

// KnownChanges says which generations (change numbers) of nf_tables a driver knows. The driver knows a generation if it
// has made the change itself, or has read the tables since.
//
// The kernel doesn't say which program made a change, so KnownChanges counts: after the driver has made three changes,
// the next three generations count as the driver's. If another program made one of these three, one of the driver's own
// generations is left over. It then counts as another program's, so the driver reads everything again.
type KnownChanges struct {
	// ReadAt is the generation at which the tables were last read, or 0 if it is unknown. After a reading, a driver
	// replaces its KnownChanges by one with this field alone.
	ReadAt uint32
	spans  []span
	own    []uint32 // generations that count as the driver's
}

type span struct {
	before, after uint32
	left          int // how many of the driver's changes Watch hasn't reported yet
}

// Add records that the driver has made a number of changes. before is the generation that preceded them, and after is
// the newest generation since.
func (k *KnownChanges) Add(before, after uint32, changes int) {
	k.spans = slices.DeleteFunc(k.spans, func(s span) bool { return s.left == 0 })
	k.spans = append(k.spans, span{before, after, changes})
}

// Has reports whether the driver knows the generation. It returns false for generation 0. The caller must pass the
// generations that Watch reported as concerned, in ascending order.
func (k *KnownChanges) Has(generation uint32) bool {
	return generation != 0 && (k.ReadAt != 0 && int32(generation-k.ReadAt) <= 0 || k.made(generation))
}

func (k *KnownChanges) made(generation uint32) bool {
	if slices.Contains(k.own, generation) {
		return true
	}
	for i := range k.spans {
		s := &k.spans[i]
		if s.left > 0 && int32(generation-s.before) > 0 && int32(generation-s.after) <= 0 {
			s.left--
			k.own = append(k.own, generation)
			return true
		}
	}
	return false
}
