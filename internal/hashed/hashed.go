// Package hashed has a map for many values that contain their own keys.
//
// Invariants:
//   - Get never returns a value with another key, even if the keys' hashes are equal.
//   - There is at most one value for each key.
package hashed

import (
	"hash/maphash"
	"iter"
)

// Map is like map[K]*V, but stores hashes instead of keys, because each value contains its key. With names as keys,
// Map needs less than half of the memory that a map[K]*V needs, and garbage collection visits fewer pointers.
type Map[K comparable, V any] struct {
	key  func(*V) K
	hash func(K) uint64
	// values has one value for each hash of a key. If several keys have the same hash, the further values are in the
	// map `others`, by key.
	values map[uint64]*V
	others map[K]*V
}

// New returns an empty map. The function key returns a value's key. The key of a value must never change.
func New[K comparable, V any](key func(*V) K) Map[K, V] {
	seed := maphash.MakeSeed()
	return Map[K, V]{
		key: key, hash: func(k K) uint64 { return maphash.Comparable(seed, k) },
		values: map[uint64]*V{}, others: map[K]*V{},
	}
}

func (m *Map[K, V]) Get(k K) *V {
	if v := m.values[m.hash(k)]; v != nil && m.key(v) == k {
		return v
	}
	return m.others[k]
}

// Put adds the value, or replaces the value with the same key.
func (m *Map[K, V]) Put(v *V) {
	k := m.key(v)
	h := m.hash(k)
	if at := m.values[h]; at != nil && m.key(at) != k {
		m.others[k] = v
		return
	}
	m.values[h] = v
	delete(m.others, k)
}

func (m *Map[K, V]) Delete(k K) {
	h := m.hash(k)
	if at := m.values[h]; at != nil && m.key(at) == k {
		delete(m.values, h)
		return
	}
	delete(m.others, k)
}

func (m *Map[K, V]) Len() int { return len(m.values) + len(m.others) }

// All yields the keys and values, in random order. The caller may delete the value that was just yielded.
func (m *Map[K, V]) All() iter.Seq2[K, *V] {
	return func(yield func(K, *V) bool) {
		for _, v := range m.values {
			if !yield(m.key(v), v) {
				return
			}
		}
		for k, v := range m.others {
			if !yield(k, v) {
				return
			}
		}
	}
}
