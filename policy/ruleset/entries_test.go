package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestFollow: entries that follow a changing list always have its first entries, and in the end all of them.
func TestFollow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	element := func() Element {
		return Element{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(64))}), 32)}
	}
	for range 1000 {
		var all, some Entries
		for range r.IntN(40) {
			all = all.With(Entry{element(), "first"})
		}
		was := Entries{}
		for step := 0; ; step++ {
			some = some.Follow(was, all, 1+r.IntN(5))
			was = all
			n := 0
			for e := range all.All() {
				comment, ok := some.Get(e.Element)
				if ok {
					n++
				}
				if n < some.Len() && !ok || ok && comment != e.Comment {
					t.Fatalf("%v, of the first %d, is missing or wrong: %q", e, some.Len(), comment)
				}
			}
			if n != some.Len() {
				t.Fatalf("%d entries, of which %d should be there", some.Len(), n)
			}
			if some.Len() == all.Len() {
				break
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
