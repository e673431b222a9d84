// Package ordered has an immutable sorted map: adding or deleting a key returns a new map, which shares most of its
// memory with the old one. The package also has List, a sorted list.
//
// The map is a treap (Seidel and Aragon, Randomized Search Trees, 1996): a search tree by key, and a heap by the keys'
// hashes.
//
// Invariants:
//   - A map never changes, so any number of goroutines may read it without a lock.
//   - Maps with the same keys have trees of the same shape, in whatever order the keys were added. So Diff can skip the
//     parts that two maps share.
//   - The keys are in order, and each occurs once.
package ordered

import (
	"hash/maphash"
	"iter"
)

// Map is an immutable map, sorted by key. Use New or From to make a map. The zero value is an empty map to which no key
// can be added.
type Map[K comparable, V comparable] struct {
	root    *node[K, V]
	compare func(a, b K) int
}

type node[K, V comparable] struct {
	left, right *node[K, V]
	key         K
	value       V
	size        int32
	rank        uint32 // the key's hash; a child's rank is never higher
}

func New[K comparable, V comparable](compare func(a, b K) int) Map[K, V] {
	return Map[K, V]{compare: compare}
}

var seed = maphash.MakeSeed()

func (m Map[K, V]) above(a uint32, ka K, b uint32, kb K) bool {
	return a > b || a == b && m.compare(ka, kb) < 0
}

// Len returns the number of keys. It takes the same time for a map of any size.
func (m Map[K, V]) Len() int { return m.root.len() }

func (n *node[K, V]) len() int {
	if n == nil {
		return 0
	}
	return int(n.size)
}

func (m Map[K, V]) Get(key K) (value V, ok bool) {
	for n := m.root; n != nil; {
		switch c := m.compare(key, n.key); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n.value, true
		}
	}
	return value, false
}

// Last returns the last key for which the function among returns true. ok is false if the function returns true for
// no key. In the order of the keys, the function must return true up to some key, and false for all later keys.
func (m Map[K, V]) Last(among func(K) bool) (key K, ok bool) {
	for n := m.root; n != nil; {
		if among(n.key) {
			key, ok, n = n.key, true, n.right
		} else {
			n = n.left
		}
	}
	return key, ok
}

// First returns a map with only the first n keys.
func (m Map[K, V]) First(n int) Map[K, V] {
	m.root = m.root.first(n)
	return m
}

func (n *node[K, V]) first(many int) *node[K, V] {
	switch {
	case n == nil || many <= 0:
		return nil
	case many >= n.len():
		return n
	case many <= n.left.len():
		return n.left.first(many)
	}
	return n.with(n.left, n.right.first(many-1-n.left.len()))
}

// Rank returns the number of keys that are lower than the given key or equal to it.
func (m Map[K, V]) Rank(key K) (rank int) {
	for n := m.root; n != nil; {
		if m.compare(n.key, key) > 0 {
			n = n.left
			continue
		}
		rank += 1 + n.left.len()
		n = n.right
	}
	return rank
}

// All yields the keys and values, sorted by key.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.all(yield) }
}

func (n *node[K, V]) all(yield func(K, V) bool) bool {
	return n == nil || n.left.all(yield) && yield(n.key, n.value) && n.right.all(yield)
}

// With returns a map that also has the key with the value. It returns m itself if m has this key and value.
func (m Map[K, V]) With(key K, value V) Map[K, V] {
	if old, ok := m.Get(key); ok && old == value {
		return m
	}
	leaf := &node[K, V]{key: key, value: value, size: 1, rank: uint32(maphash.Comparable(seed, key))}
	m.root = m.insert(m.root, leaf)
	return m
}

// WithAll returns a map with the keys and values of m and of the map more. If both maps have a key, the value is from
// the map more. WithAll is faster than calling With for each key. It is fastest if few keys of m lie between keys of
// the map more.
func (m Map[K, V]) WithAll(more Map[K, V]) Map[K, V] {
	more.root = more.union(m.root, more.root)
	return more
}

// Without returns a map without the key. It returns m itself if m doesn't have the key.
func (m Map[K, V]) Without(key K) Map[K, V] {
	if _, ok := m.Get(key); ok {
		m.root = m.remove(m.root, key)
	}
	return m
}

// Same reports whether the maps share all their memory. It returns false for equal maps that were made separately,
// unless they are empty.
func (m Map[K, V]) Same(o Map[K, V]) bool { return m.root == o.root }

// Equal reports whether the maps have the same keys and values. It skips parts that the maps share.
func (m Map[K, V]) Equal(o Map[K, V]) bool {
	for range m.Diff(o) {
		return false
	}
	return true
}

// Change is the difference of two maps in one key.
type Change[K, V any] struct {
	Key      K
	Was, Now V
	Had, Has bool // Had is true if the old map has the key, and Has if the new map has it
}

// Diff yields the changes from the map m to the map now, sorted by key. It skips parts that the maps share.
func (m Map[K, V]) Diff(now Map[K, V]) iter.Seq[Change[K, V]] {
	if m.compare == nil {
		m.compare = now.compare
	}
	return func(yield func(Change[K, V]) bool) { m.diff(m.root, now.root, yield) }
}

func (m Map[K, V]) diff(was, now *node[K, V], yield func(Change[K, V]) bool) bool {
	switch {
	case was == now:
		return true
	case was == nil:
		return now.all(func(k K, v V) bool { return yield(Change[K, V]{Key: k, Now: v, Has: true}) })
	case now == nil:
		return was.all(func(k K, v V) bool { return yield(Change[K, V]{Key: k, Was: v, Had: true}) })
	case was.rank == now.rank && was.key == now.key:
		return m.diff(was.left, now.left, yield) &&
			(was.value == now.value || yield(Change[K, V]{was.key, was.value, now.value, true, true})) &&
			m.diff(was.right, now.right, yield)
	case m.above(was.rank, was.key, now.rank, now.key): // the key is only in the old map
		left, right := m.split(now, was.key)
		return m.diff(was.left, left, yield) && yield(Change[K, V]{Key: was.key, Was: was.value, Had: true}) &&
			m.diff(was.right, right, yield)
	}
	left, right := m.split(was, now.key)
	return m.diff(left, now.left, yield) && yield(Change[K, V]{Key: now.key, Now: now.value, Has: true}) &&
		m.diff(right, now.right, yield)
}

func (m Map[K, V]) insert(n, leaf *node[K, V]) *node[K, V] {
	switch {
	case n == nil:
		return leaf
	case n.rank == leaf.rank && n.key == leaf.key:
		return leaf.with(n.left, n.right)
	case m.above(leaf.rank, leaf.key, n.rank, n.key):
		left, right := m.split(n, leaf.key)
		return leaf.with(left, right)
	case m.compare(leaf.key, n.key) < 0:
		return n.with(m.insert(n.left, leaf), n.right)
	}
	return n.with(n.left, m.insert(n.right, leaf))
}

// union returns a tree with the keys of both trees. If both trees have a key, the result has the value from the tree
// more.
func (m Map[K, V]) union(n, more *node[K, V]) *node[K, V] {
	switch {
	case n == nil:
		return more
	case more == nil || n == more:
		return n
	case n.rank == more.rank && n.key == more.key:
		top := more
		if n.value == more.value {
			top = n
		}
		return top.over(m.union(n.left, more.left), m.union(n.right, more.right))
	case m.above(n.rank, n.key, more.rank, more.key):
		left, right := m.split(more, n.key)
		return n.over(m.union(n.left, left), m.union(n.right, right))
	}
	left, right := m.split(n, more.key)
	return more.over(m.union(left, more.left), m.union(right, more.right))
}

func (n *node[K, V]) over(left, right *node[K, V]) *node[K, V] {
	if n.left == left && n.right == right {
		return n
	}
	return n.with(left, right)
}

func (m Map[K, V]) remove(n *node[K, V], key K) *node[K, V] {
	switch c := m.compare(key, n.key); {
	case c < 0:
		return n.with(m.remove(n.left, key), n.right)
	case c > 0:
		return n.with(n.left, m.remove(n.right, key))
	}
	return m.join(n.left, n.right)
}

// split divides the tree n into the keys below the given key and the keys above it. The tree must not contain the key.
func (m Map[K, V]) split(n *node[K, V], key K) (lower, higher *node[K, V]) {
	switch {
	case n == nil:
		return nil, nil
	case m.compare(key, n.key) < 0:
		lower, rest := m.split(n.left, key)
		if rest == n.left {
			return lower, n
		}
		return lower, n.with(rest, n.right)
	}
	rest, higher := m.split(n.right, key)
	if rest == n.right {
		return n, higher
	}
	return n.with(n.left, rest), higher
}

func (m Map[K, V]) join(lower, higher *node[K, V]) *node[K, V] {
	switch {
	case lower == nil:
		return higher
	case higher == nil:
		return lower
	case m.above(lower.rank, lower.key, higher.rank, higher.key):
		return lower.with(lower.left, m.join(lower.right, higher))
	}
	return higher.with(m.join(lower, higher.left), higher.right)
}

func (n *node[K, V]) with(left, right *node[K, V]) *node[K, V] {
	c := *n
	c.left, c.right, c.size = left, right, int32(1+left.len()+right.len())
	return &c
}
