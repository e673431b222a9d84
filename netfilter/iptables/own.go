package iptables

import "slices"

// ownChanges recognises the generations of nf_tables that the driver's own changes of rules made. The kernel doesn't
// say which program made a generation. But other programs' changes between the driver's are rarely of concern: most are
// the plugin's, which lets a new pod's port through the guard. So ownChanges counts: of the concerned generations in a
// span, it takes as many for the driver's own as the driver has made. If another program made one of them after all,
// then one of the driver's own generations is left over, and the driver reads everything again.
type ownChanges struct {
	spans []span
	known []uint32 // generations that were taken for the driver's own
}

// span is the generations after before, up to and including after.
type span struct {
	before, after uint32
	left          int // the driver's changes in it that Watch hasn't reported yet
}

func (o *ownChanges) note(before, after uint32, changes int) {
	o.spans = slices.DeleteFunc(o.spans, func(s span) bool { return s.left == 0 })
	o.spans = append(o.spans, span{before, after, changes})
}

// made reports whether the driver made the generation. It is called only for generations that Watch calls concerned, in
// order. A second call for a generation returns the same.
func (o *ownChanges) made(generation uint32) bool {
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
