package agent

import (
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy"
)

// accumulated has the objects of all deltas that a source has given.
type accumulated struct {
	pods       map[policy.Name][]*policy.Pod
	policies   map[policy.Name][]*networkingv1.NetworkPolicy
	namespaces map[string]*policy.Namespace
	objects    policy.Objects
}

func newAccumulated() *accumulated {
	return &accumulated{
		pods: map[policy.Name][]*policy.Pod{}, policies: map[policy.Name][]*networkingv1.NetworkPolicy{},
		namespaces: map[string]*policy.Namespace{},
	}
}

// add adds the delta, and returns the objects after it, which never change. It returns nil if the delta is nil.
func (a *accumulated) add(d *policy.Delta) *policy.Objects {
	if d == nil {
		return nil
	}
	put(a.pods, d.Pods, func(pods []*policy.Pod) bool { return len(pods) == 0 })
	put(a.policies, d.Policies, func(policies []*networkingv1.NetworkPolicy) bool { return len(policies) == 0 })
	put(a.namespaces, d.Namespaces, func(n *policy.Namespace) bool { return n == nil })
	if len(d.Pods) > 0 {
		a.objects.Pods = make([]policy.Pod, 0, len(a.pods))
		for _, pods := range a.pods {
			for _, p := range pods {
				a.objects.Pods = append(a.objects.Pods, *p)
			}
		}
	}
	if len(d.Policies) > 0 {
		a.objects.Policies = slices.Concat(slices.Collect(maps.Values(a.policies))...)
	}
	if len(d.Namespaces) > 0 {
		a.objects.Namespaces = make([]policy.Namespace, 0, len(a.namespaces))
		for _, n := range a.namespaces {
			a.objects.Namespaces = append(a.objects.Namespaces, *n)
		}
	}
	replace(&a.objects.Nodes, d.Nodes)
	replace(&a.objects.Workloads, d.Workloads)
	replace(&a.objects.Problems, d.Problems)
	replace(&a.objects.Unenforced, d.Unenforced)
	objects := a.objects
	return &objects
}

// put replaces what has changed, and deletes what is gone.
func put[K comparable, T any](all, changed map[K]T, gone func(T) bool) {
	for name, now := range changed {
		if all[name] = now; gone(now) {
			delete(all, name)
		}
	}
}

// replace replaces the list, if it has changed.
func replace[T any](list, changed *[]T) {
	if changed != nil {
		*list = *changed
	}
}
