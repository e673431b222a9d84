package ordered

import (
	"hash/maphash"
	"iter"
)

// From returns a map of the pairs, which must be in the order of the function compare. If several pairs have the same
// key, the first counts. From is faster than calling With for each pair.
func From[K comparable, V comparable](compare func(a, b K) int, sorted iter.Seq2[K, V]) Map[K, V] {
	m := New[K, V](compare)
	var spine []*node[K, V] // nodes on the way from the root to the highest key
	for key, value := range sorted {
		if len(spine) > 0 && compare(spine[len(spine)-1].key, key) == 0 {
			continue
		}
		n := &node[K, V]{key: key, value: value, size: 1, rank: uint32(maphash.Comparable(seed, key))}
		for len(spine) > 0 && m.above(n.rank, n.key, spine[len(spine)-1].rank, spine[len(spine)-1].key) {
			n.left = spine[len(spine)-1]
			n.left.count()
			spine = spine[:len(spine)-1]
		}
		if len(spine) > 0 {
			spine[len(spine)-1].right = n
		}
		spine = append(spine, n)
	}
	for i := len(spine) - 1; i >= 0; i-- {
		spine[i].count()
		m.root = spine[i]
	}
	return m
}

func (n *node[K, V]) count() { n.size = int32(1 + n.left.len() + n.right.len()) }
