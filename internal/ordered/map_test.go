package ordered

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestMap: after random changes, Map has the same content as Go's map, and earlier versions of Map haven't changed.
// Diff yields exactly the differences of two versions.
func TestMap(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		now, want := New[int, int](cmp.Compare), map[int]int{}
		type version struct {
			Map[int, int]
			want map[int]int
		}
		var versions []version
		for range 200 {
			k, v := r.IntN(60), r.IntN(3)
			if r.IntN(3) == 0 {
				now = now.Without(k)
				delete(want, k)
			} else {
				now = now.With(k, v)
				want[k] = v
			}
			versions = append(versions, version{now, maps.Clone(want)})
		}
		for _, v := range versions {
			check(t, v.Map, v.want)
			built := From(cmp.Compare, func(yield func(int, int) bool) {
				for _, k := range slices.Sorted(maps.Keys(v.want)) {
					if !yield(k, v.want[k]) || !yield(k, -1) { // From must ignore the second pair with the same key
						return
					}
				}
			})
			check(t, built, v.want)
			if !built.Equal(v.Map) || !sameShape(built.root, v.root) {
				t.Fatalf("seed %d: %v was built in another shape", seed, v.want)
			}
			other := versions[r.IntN(len(versions))]
			checkDiff(t, v.Map, other.Map)
			if r.IntN(4) == 0 {
				checkUnion(t, v.Map, other.Map)
			}
		}
	}
}

func checkUnion(t *testing.T, m, more Map[int, int]) {
	t.Helper()
	want, one := maps.Collect(m.All()), m
	for k, v := range more.All() {
		want[k], one = v, one.With(k, v)
	}
	got := m.WithAll(more)
	check(t, got, want)
	if !sameShape(got.root, one.root) {
		t.Fatalf("the union of %v and %v has another shape", m, more)
	}
	if same := m.WithAll(m.First(5)); !same.Same(m) {
		t.Fatalf("with its own first keys, %v is copied", m)
	}
}

func check(t *testing.T, m Map[int, int], want map[int]int) {
	t.Helper()
	if got := maps.Collect(m.All()); !maps.Equal(got, want) || m.Len() != len(want) {
		t.Fatalf("got %v with length %d, want %v", got, m.Len(), want)
	}
	last := -1
	for k, v := range m.All() {
		if got, ok := m.Get(k); k <= last || !ok || got != v {
			t.Fatalf("key %d after %d: Get returns %d, %v", k, last, got, ok)
		}
		last = k
	}
	sorted := slices.Sorted(maps.Keys(want))
	for _, n := range []int{-1, 0, 1, len(want) / 2, len(want), 60} {
		first := maps.Clone(want)
		for _, k := range sorted[min(max(n, 0), len(sorted)):] {
			delete(first, k)
		}
		got := m.First(n)
		built := From(cmp.Compare, func(yield func(int, int) bool) {
			for _, k := range slices.Sorted(maps.Keys(first)) {
				if !yield(k, first[k]) {
					return
				}
			}
		})
		if !maps.Equal(maps.Collect(got.All()), first) || !sameShape(got.root, built.root) {
			t.Fatalf("the first %d keys are %v, want %v", n, maps.Collect(got.All()), first)
		}
	}
	for k := -1; k <= 60; k++ {
		rank, found := slices.BinarySearch(sorted, k)
		if found {
			rank++
		}
		if got := m.Rank(k); got != rank {
			t.Fatalf("%d keys are no higher than %d, not %d", rank, k, got)
		}
	}
	for k := -1; k <= 60; k++ {
		want := k
		for ; want >= 0; want-- {
			if _, ok := m.Get(want); ok {
				break
			}
		}
		if got, ok := m.Last(func(n int) bool { return n <= k }); ok != (want >= 0) || (ok && got != want) {
			t.Fatalf("the last key up to %d is %d, %v; want %d", k, got, ok, want)
		}
	}
}

func checkDiff(t *testing.T, a, b Map[int, int]) {
	t.Helper()
	got, last := maps.Collect(a.All()), -1
	for c := range a.Diff(b) {
		if was, had := a.Get(c.Key); c.Key <= last || had != c.Had || was != c.Was {
			t.Fatalf("the difference %+v comes after key %d", c, last)
		}
		if now, has := b.Get(c.Key); has != c.Has || now != c.Now || c.Had && c.Has && c.Was == c.Now {
			t.Fatalf("%+v is no difference", c)
		}
		last = c.Key
		if delete(got, c.Key); c.Has {
			got[c.Key] = c.Now
		}
	}
	if want := maps.Collect(b.All()); !maps.Equal(got, want) {
		t.Fatalf("the differences lead to %v, want %v", got, want)
	}
	if a.Equal(b) != maps.Equal(maps.Collect(a.All()), maps.Collect(b.All())) {
		t.Fatal("Equal is wrong")
	}
}

func sameShape(a, b *node[int, int]) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.key == b.key && a.size == b.size && sameShape(a.left, b.left) && sameShape(a.right, b.right)
}

// BenchmarkDiff measures With and Diff for a change of one key, in maps with 100 to 1,000,000 keys.
func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{100, 10_000, 1_000_000} {
		m := From(cmp.Compare, func(yield func(int, int) bool) {
			for k := range n {
				if !yield(k, 0) {
					return
				}
			}
		})
		b.Run(cmp.Or(map[int]string{100: "100", 10_000: "10000"}[n], "1000000"), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				changes := 0
				for range m.Diff(m.With(i%n, 1)) {
					changes++
				}
				if changes != 1 {
					b.Fatalf("%d changes", changes)
				}
			}
		})
	}
}
