package nftnl

import (
	"math"
	"testing"
)

func TestKnownChanges(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after uint32
		changes       int
		heard         []uint32 // generations that change weir's tables, as Watch reports them
		unknown       int      // how many of these generations must count as changes by other programs
	}{
		{"all own", 10, 12, 2, []uint32{11, 12}, 0},
		{"heard of twice", 10, 12, 2, []uint32{11, 11, 12, 12, 11}, 0},
		{"with one of no concern between", 10, 13, 2, []uint32{11, 13}, 0},
		{"with a stranger's between", 10, 13, 2, []uint32{11, 12, 13}, 1},
		{"with a stranger's before and behind", 10, 12, 2, []uint32{10, 11, 12, 13}, 2},
		{"counted around", math.MaxUint32, 1, 2, []uint32{0, 1, 2}, 1},
		{"nothing own", 10, 11, 0, []uint32{11}, 1},
	} {
		var k KnownChanges
		k.Add(c.before, c.after, c.changes)
		unknown := 0
		for _, g := range c.heard {
			if !k.made(g) {
				unknown++
			}
		}
		if unknown != c.unknown {
			t.Errorf("%s: %d are unknown, want %d", c.name, unknown, c.unknown)
		}
	}
}
