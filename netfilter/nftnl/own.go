package nftnl

import "slices"

// OwnChanges tells generations (change numbers) of nf_tables that the driver has made from those of other programs. The
// kernel doesn't say who made a generation, so OwnChanges counts: after the driver has made three changes, the next
// three generations count as the driver's. If one of them was another program's, a generation of the driver's is left
// over. It counts as another program's, so the driver reads everything again.
type OwnChanges struct {
	spans []span
	known []uint32 // generations that count as the driver's
}

type span struct {
	before, after uint32
	left          int // how many of the driver's changes Watch hasn't reported yet
}

// Add records that the driver has made a number of changes. before is the generation that preceded them, and after is
// the newest generation since.
func (o *OwnChanges) Add(before, after uint32, changes int) {
	o.spans = slices.DeleteFunc(o.spans, func(s span) bool { return s.left == 0 })
	o.spans = append(o.spans, span{before, after, changes})
}

// Made reports whether the driver made the generation. The caller must pass the generations that Watch reported as
// concerned, in ascending order.
func (o *OwnChanges) Made(generation uint32) bool {
	if slices.Contains(o.known, generation) {
		return true
	}
	for i := range o.spans {
		s := &o.spans[i]
		if s.left > 0 && int32(generation-s.before) > 0 && int32(generation-s.after) <= 0 {
			s.left--
			o.known = append(o.known, generation)
			return true
		}
	}
	return false
}
