package ordered

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestList: after random changes, the list has the same values as a map, in order. Slices that were returned before
// don't change.
func TestList(t *testing.T) {
	type pair struct{ key, value int }
	r := rand.New(rand.NewPCG(1, 1))
	list := NewList(func(p *pair) int { return p.key }, cmp.Compare[int])
	want := map[int]*pair{}
	var before, kept []pair
	for range 10_000 {
		for range r.IntN(4) {
			p := &pair{r.IntN(30), r.Int()}
			switch was := want[p.key]; {
			case r.IntN(2) == 0:
				want[p.key] = p
				list.Put(p)
			case was != nil && r.IntN(2) == 0:
				delete(want, p.key)
				list.Remove(was)
			case was != nil:
				want[p.key] = p
				list.Put(p)
				list.Remove(was) // ignored, because p has replaced the value
			}
		}
		if !slices.Equal(before, kept) {
			t.Fatal("an earlier list has changed")
		}
		before = list.All()
		kept = slices.Clone(before)
		var values []pair
		for _, k := range slices.Sorted(maps.Keys(want)) {
			values = append(values, *want[k])
		}
		if !slices.Equal(before, values) {
			t.Fatalf("%v, not %v", before, values)
		}
	}
}
