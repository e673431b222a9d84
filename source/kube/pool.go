package kube

import (
	"hash/maphash"
	"maps"
	"slices"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// pool stores equal values once, to save memory. It removes a value when nothing uses it any more.
type pool[T any] struct {
	hash  func(T) uint64
	equal func(a, b T) bool
	// own copies a new value, and the pool keeps the copy. If own is nil, the pool keeps the value itself. The pool calls
	// free for each value that it removes. free may be nil.
	own    func(T) T
	free   func(T)
	values map[uint64]*pooled[T]
}

type pooled[T any] struct {
	value T
	uses  int
	next  *pooled[T] // a different value with the same hash
}

func (p *pool[T]) find(v T) *pooled[T] {
	e := p.values[p.hash(v)]
	for e != nil && !p.equal(e.value, v) {
		e = e.next
	}
	return e
}

// share returns the pool's copy of the value. A caller that keeps the copy must call use. Otherwise sweep may remove
// the copy.
func (p *pool[T]) share(v T) T {
	if e := p.find(v); e != nil {
		return e.value
	}
	if p.own != nil {
		v = p.own(v)
	}
	h := p.hash(v)
	p.values[h] = &pooled[T]{value: v, next: p.values[h]}
	return v
}

// use counts one more use of the value. The value must come from share.
func (p *pool[T]) use(v T) {
	e := p.find(v)
	if e == nil { // the value was removed after the caller's call of share
		p.share(v)
		e = p.find(v)
	}
	e.uses++
}

func (p *pool[T]) release(v T) {
	e := p.find(v)
	if e.uses--; e.uses == 0 {
		p.drop(p.hash(v), e)
	}
}

func (p *pool[T]) sweep() {
	for h, first := range p.values {
		for e := first; e != nil; e = e.next {
			if e.uses == 0 {
				p.drop(h, e)
			}
		}
	}
}

func (p *pool[T]) drop(h uint64, e *pooled[T]) {
	if first := p.values[h]; first != e {
		for first.next != e {
			first = first.next
		}
		first.next = e.next
	} else if p.values[h] = e.next; e.next == nil {
		delete(p.values, h)
	}
	if p.free != nil {
		p.free(e.value)
	}
}

type pools struct {
	strings pool[string]
	labels  pool[map[string]string]
	ports   pool[[]policy.NamedPort]
}

func newPools() *pools {
	seed := maphash.MakeSeed()
	hash := func(s string) uint64 { return maphash.String(seed, s) }
	p := &pools{strings: pool[string]{
		hash: hash, equal: func(a, b string) bool { return a == b }, values: map[uint64]*pooled[string]{},
	}}
	keep := func(s string) string {
		s = p.strings.share(s)
		p.strings.use(s)
		return s
	}
	p.labels = pool[map[string]string]{
		values: map[uint64]*pooled[map[string]string]{}, equal: maps.Equal[map[string]string, map[string]string],
		hash: func(labels map[string]string) uint64 {
			var sum uint64 // a sum, because the order of a map's keys is random
			for key, value := range labels {
				sum += hash(key)*31 + hash(value)
			}
			return sum
		},
		own: func(labels map[string]string) map[string]string {
			own := make(map[string]string, len(labels))
			for key, value := range labels {
				own[keep(key)] = value
			}
			return own
		},
		free: func(labels map[string]string) {
			for key := range labels {
				p.strings.release(key)
			}
		},
	}
	p.ports = pool[[]policy.NamedPort]{
		values: map[uint64]*pooled[[]policy.NamedPort]{}, equal: slices.Equal[[]policy.NamedPort],
		hash: func(ports []policy.NamedPort) uint64 {
			var sum uint64
			for _, port := range ports {
				sum = sum*31 + hash(port.Name) + uint64(port.Number)
			}
			return sum
		},
		own: func(ports []policy.NamedPort) []policy.NamedPort {
			own := slices.Clip(slices.Clone(ports))
			for i := range own {
				own[i].Name, own[i].Proto = keep(own[i].Name), ruleset.Protocol(keep(string(own[i].Proto)))
			}
			return own
		},
		free: func(ports []policy.NamedPort) {
			for _, port := range ports {
				p.strings.release(port.Name)
				p.strings.release(string(port.Proto))
			}
		},
	}
	return p
}

func (p *pools) share(pod *policy.Pod) {
	pod.Namespace, pod.NodeName = p.strings.share(pod.Namespace), p.strings.share(pod.NodeName)
	if pod.Labels = p.labels.share(pod.Labels); len(pod.Labels) == 0 {
		pod.Labels = nil
	}
	if pod.Ports = p.ports.share(pod.Ports); len(pod.Ports) == 0 {
		pod.Ports = nil
	}
}

func (p *pools) use(pod *policy.Pod) {
	p.strings.use(pod.Namespace)
	p.strings.use(pod.NodeName)
	p.labels.use(pod.Labels)
	p.ports.use(pod.Ports)
}

func (p *pools) release(pod *policy.Pod) {
	p.strings.release(pod.Namespace)
	p.strings.release(pod.NodeName)
	p.labels.release(pod.Labels)
	p.ports.release(pod.Ports)
}

func (p *pools) sweep() {
	p.labels.sweep()
	p.ports.sweep()
	p.strings.sweep()
}
