package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestPieces: a list is read in growing pieces while the list changes. Each piece is the beginning of the current
// list: all entries up to the last entry of the previous piece, and n more. The last piece is the whole list.
func TestPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	element := func() Element {
		return Element{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(64))}), 32)}
	}
	for range 1000 {
		var all, piece Entries
		for range r.IntN(40) {
			all = all.With(Entry{element(), "first"})
		}
		for step := 0; piece.Len() < all.Len(); step++ {
			before, n := piece, 1+r.IntN(5)
			piece = all.First(all.UpTo(piece) + n)
			have := slices.Collect(piece.All())
			if want := slices.Collect(all.All())[:len(have)]; !slices.Equal(have, want) {
				t.Fatalf("%v isn't the beginning of %v", have, want)
			}
			if all.UpTo(before)+n != len(have) && len(have) != all.Len() {
				t.Fatalf("%d entries after %v", len(have), before)
			}
			if step > 200 {
				t.Fatal("it never ends")
			}
			for range r.IntN(3) {
				if e := element(); r.IntN(2) == 0 {
					all = all.With(Entry{e, "later"})
				} else {
					all = all.Without(e)
				}
			}
		}
	}
}

// TestHasAddress: HasAddress gives the same result as a look at each entry.
func TestHasAddress(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var all Entries
		for range r.IntN(12) {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(16))})
			all = all.With(Entry{Element{Prefix: netip.PrefixFrom(a, 30+r.IntN(3)), Port: uint16(r.IntN(2))}, ""})
		}
		for n := range byte(17) {
			a, has := netip.AddrFrom4([4]byte{10, 0, 0, n}), false
			for e := range all.All() {
				has = has || e.Prefix == netip.PrefixFrom(a, 32)
			}
			if all.HasAddress(a) != has {
				t.Fatalf("%v has %s: %v", slices.Collect(all.All()), a, !has)
			}
		}
	}
}
