package nftnl

import "slices"

// OwnChanges recognises the generations of nf_tables that the driver's own changes of rules made. The kernel doesn't
// say which program made a generation. But between the driver's changes, other programs rarely change something that
// weir uses: most of their changes are the plugin's, which adds a new pod's port to the guard. So OwnChanges counts.
// If the driver has made three changes in a span, the first three concerned generations of the span count as the
// driver's own. If another program made one of these three, one of the driver's own generations is left over, and the
// driver reads everything again.
type OwnChanges struct {
	spans []span
	known []uint32 // generations that count as the driver's own
}

// span is a range of generations: from before (exclusive) to after (inclusive).
type span struct {
	before, after uint32
	left          int // how many of the driver's changes in the span Watch hasn't reported yet
}

// Note notes that the driver has made so many changes between the generations before, exclusive, and after, inclusive.
func (o *OwnChanges) Note(before, after uint32, changes int) {
	o.spans = slices.DeleteFunc(o.spans, func(s span) bool { return s.left == 0 })
	o.spans = append(o.spans, span{before, after, changes})
}

// Made reports whether the driver made the generation. It must be called only for generations that Watch calls
// concerned, and in order. A second call for the same generation returns the same result.
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
