package iptables

import "slices"

// ownChanges are the driver's own changes of rules, by the generations of nf_tables that they made. Which these are
// can't be seen; but others' that fall between them are rarely of concern: mostly they are the plugin's, which lets a
// new pod's port through the spoof guard. So of those that concern weir as many are taken for the driver's own as it
// has made. If one was somebody else's after all, one of the driver's own isn't known for its own, and everything is
// read.
type ownChanges struct {
	spans []span
	known []uint32 // that were found to be its own
}

// span is what lies between two generations, the first not included.
type span struct {
	before, after uint32
	left          int // own changes that were not heard of yet
}

func (o *ownChanges) note(before, after uint32, changes int) {
	o.spans = slices.DeleteFunc(o.spans, func(s span) bool { return s.left == 0 })
	o.spans = append(o.spans, span{before, after, changes})
}

// made says whether that generation, which is of concern, was the driver's own making.
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
