package ordered

import (
	"maps"
	"slices"
)

// List keeps values, and All returns them as a sorted slice. All makes each new slice from the previous slice, and
// looks up only the values that have changed since.
type List[K comparable, T any] struct {
	key     func(*T) K
	compare func(a, b K) int
	all     map[K]*T
	changed map[K]bool // keys whose values have changed since the slice last was made
	last    []T
}

func NewList[K comparable, T any](key func(*T) K, compare func(a, b K) int) List[K, T] {
	return List[K, T]{key: key, compare: compare, all: map[K]*T{}, changed: map[K]bool{}}
}

// Put adds the values. A value replaces the earlier value with the same key. After changing a value, the caller must
// call Put again.
func (l *List[K, T]) Put(values ...*T) {
	for _, v := range values {
		k := l.key(v)
		l.all[k], l.changed[k] = v, true
	}
}

// Remove removes the values. It ignores a value that Put has replaced by another value with the same key.
func (l *List[K, T]) Remove(values ...*T) {
	for _, v := range values {
		if k := l.key(v); l.all[k] == v {
			l.changed[k] = true
			delete(l.all, k)
		}
	}
}

func (l *List[K, T]) Replace(was, now []*T) {
	l.Remove(was...)
	l.Put(now...)
}

// All returns copies of all values, sorted by key. Callers must not change the slice.
func (l *List[K, T]) All() []T {
	if len(l.changed) == 0 {
		return l.last
	}
	list := make([]T, 0, len(l.all))
	rest := l.last
	for _, k := range slices.SortedFunc(maps.Keys(l.changed), l.compare) {
		i, found := slices.BinarySearchFunc(rest, k, func(v T, k K) int { return l.compare(l.key(&v), k) })
		list = append(list, rest[:i]...)
		if rest = rest[i:]; found {
			rest = rest[1:]
		}
		if now := l.all[k]; now != nil {
			list = append(list, *now)
		}
	}
	list = append(list, rest...)
	l.last, l.changed = list, map[K]bool{}
	return l.last
}
