// Package hashed has a map for many values that have their keys in themselves.
//
// Invariants:
//   - Get returns only a value with the wanted key, even if other keys have the same hash.
//   - Each key has one value at most.
package hashed

import (
	"hash/maphash"
	"iter"
)

// Map is like map[K]*V, but keeps the hashes of the keys instead of the keys. So its only pointers are those to the
// values: a map of names takes less than half of the memory, and a garbage collection has less to visit.
type Map[K comparable, V any] struct {
	key  func(*V) K
	hash func(K) uint64
	// values has one value for each hash. others has the values whose hash another value had when they were put.
	values map[uint64]*V
	others map[K]*V
}

// New returns an empty map. key returns a value's key, which must never change.
func New[K comparable, V any](key func(*V) K) Map[K, V] {
	seed := maphash.MakeSeed()
	return Map[K, V]{
		key: key, hash: func(k K) uint64 { return maphash.Comparable(seed, k) },
		values: map[uint64]*V{}, others: map[K]*V{},
	}
}

// Get returns the value of the key; nil if there is none.
func (m *Map[K, V]) Get(k K) *V {
	if v := m.values[m.hash(k)]; v != nil && m.key(v) == k {
		return v
	}
	return m.others[k]
}

// Put adds the value, or replaces the value of its key.
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

// Delete removes the value of the key, if there is one.
func (m *Map[K, V]) Delete(k K) {
	h := m.hash(k)
	if at := m.values[h]; at != nil && m.key(at) == k {
		delete(m.values, h)
		return
	}
	delete(m.others, k)
}

// Len returns the number of values.
func (m *Map[K, V]) Len() int { return len(m.values) + len(m.others) }

// All yields the values with their keys, in no order. The caller may delete the yielded value.
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
