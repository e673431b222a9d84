package nftnl

import "slices"

// OwnChanges recognises the generations of nf_tables that the driver's own changes made. The kernel doesn't say
// who made a generation, so OwnChanges counts: of a span in which the driver made three changes, the first three
// generations count as own. If another program made one of these three, a later one of the driver's doesn't count
// as own, and the driver reads everything again.
type OwnChanges struct {
	spans []span
	known []uint32 // generations that count as the driver's own
}

type span struct {
	before, after uint32
	left          int // how many of its changes Watch hasn't reported yet
}

// Note notes that the driver has made changes between the generations before (exclusive) and after (inclusive).
func (o *OwnChanges) Note(before, after uint32, changes int) {
	o.spans = slices.DeleteFunc(o.spans, func(s span) bool { return s.left == 0 })
	o.spans = append(o.spans, span{before, after, changes})
}

// Made reports whether the driver made the generation. The caller must pass only the generations that Watch
// reported as concerned, in ascending order.
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
