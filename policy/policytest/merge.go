package policytest

import (
	"math/rand/v2"

	"github.com/weir-net/weir/policy/ruleset"
)

// Bounds returns random limits for ruleset.Merge. Most are small: with the usual limits, hardly anything in a small
// cluster would be merged.
func Bounds(r *rand.Rand) ruleset.Bounds {
	b := ruleset.UsualBounds()
	switch r.IntN(4) {
	case 0:
		b.Sets, b.Lists = 0, r.IntN(2)
	case 1:
		b.Sets, b.Large, b.Lists, b.SetLen = 1+r.IntN(3), r.IntN(3), r.IntN(3), 1+r.IntN(4)
	case 2:
		b.Sets, b.Lists, b.Entries, b.Pairs = 0, r.IntN(2), 1+r.IntN(20), 1+r.IntN(20)
	}
	return b
}
