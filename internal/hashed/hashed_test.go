package hashed

import (
	"maps"
	"math/rand/v2"
	"testing"
)

type pair struct{ key, value int }

// TestMap: after random changes, Map has the same values as Go's map, even if many keys have the same hash.
func TestMap(t *testing.T) {
	for name, hash := range map[string]func(int) uint64{
		"the real hash": nil, "three hashes": func(k int) uint64 { return uint64(k % 3) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			now, want := New(func(p *pair) int { return p.key }), map[int]*pair{}
			if hash != nil {
				now.hash = hash
			}
			for range 20_000 {
				p := &pair{r.IntN(12), r.Int()}
				if r.IntN(2) == 0 {
					now.Put(p)
					want[p.key] = p
				} else {
					now.Delete(p.key)
					delete(want, p.key)
				}
				for k := range 12 {
					if now.Get(k) != want[k] {
						t.Fatalf("the value of %d is %v, not %v", k, now.Get(k), want[k])
					}
				}
				if now.Len() != len(want) || !maps.Equal(maps.Collect(now.All()), want) {
					t.Fatalf("%v, not %v", maps.Collect(now.All()), want)
				}
			}
		})
	}
}
