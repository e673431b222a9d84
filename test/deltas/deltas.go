// Package deltas adds up deltas, which have only the changed objects of a source. So tests can compare all of the
// source's objects.
package deltas

import (
	"cmp"
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy"
)

// Sum has a source's objects after all added deltas.
type Sum struct {
	pods       map[policy.Name][]*policy.Pod
	policies   map[policy.Name][]*networkingv1.NetworkPolicy
	namespaces map[string]*policy.Namespace
	lists      policy.Objects
}

func NewSum() *Sum {
	return &Sum{
		pods: map[policy.Name][]*policy.Pod{}, policies: map[policy.Name][]*networkingv1.NetworkPolicy{},
		namespaces: map[string]*policy.Namespace{},
	}
}

// Add adds the changed objects in the delta, and returns all objects that the source now has. Pods, policies and
// namespaces are ordered by name. For a nil delta, Add returns nil.
func (s *Sum) Add(d *policy.Delta) *policy.Objects {
	if d == nil {
		return nil
	}
	maps.Copy(s.pods, d.Pods)
	maps.Copy(s.policies, d.Policies)
	maps.Copy(s.namespaces, d.Namespaces)
	maps.DeleteFunc(s.namespaces, func(_ string, n *policy.Namespace) bool { return n == nil })
	o := policy.Objects{}
	for _, name := range sorted(s.pods) {
		for _, p := range s.pods[name] {
			o.Pods = append(o.Pods, *p)
		}
	}
	for _, name := range sorted(s.policies) {
		o.Policies = append(o.Policies, s.policies[name]...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.namespaces)) {
		o.Namespaces = append(o.Namespaces, *s.namespaces[name])
	}
	o.Nodes = latest(&s.lists.Nodes, d.Nodes)
	o.Workloads = latest(&s.lists.Workloads, d.Workloads)
	o.Problems = latest(&s.lists.Problems, d.Problems)
	o.Unenforced = latest(&s.lists.Unenforced, d.Unenforced)
	return &o
}

func sorted[T any](by map[policy.Name]T) []policy.Name {
	return slices.SortedFunc(maps.Keys(by), func(a, b policy.Name) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func latest[T any](last, now *[]T) []T {
	if now != nil {
		*last = *now
	}
	return *last
}
