package policy

import (
	"reflect"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// Name is the namespace and name of an object. An object outside of namespaces has only a name.
type Name struct{ Namespace, Name string }

// Delta has the objects that have changed since the source's last delta. Nobody may modify the objects in a Delta.
type Delta struct {
	// Pods has all pods of each changed name. The list is empty if the pod is gone. A directory of manifests
	// may have several pods of one name.
	Pods map[Name][]*Pod
	// Policies has all policies of each changed name.
	Policies   map[Name][]*networkingv1.NetworkPolicy
	Namespaces map[string]*Namespace

	// Each of these four lists is complete, and nil if nothing in the list has changed. Nodes have all their claims.
	Nodes      *[]Node
	Workloads  *[]Workload
	Problems   *[]ruleset.Problem
	Unenforced *[]Unenforced

	// Number is how many deltas with changes the source has given so far. It is 0 if the source doesn't count.
	Number uint64
}

func NewDelta() *Delta {
	return &Delta{
		Pods: map[Name][]*Pod{}, Policies: map[Name][]*networkingv1.NetworkPolicy{}, Namespaces: map[string]*Namespace{},
	}
}

// Empty reports whether nothing has changed. The Number doesn't count.
func (d *Delta) Empty() bool {
	return len(d.Pods)+len(d.Policies)+len(d.Namespaces) == 0 &&
		d.Nodes == nil && d.Workloads == nil && d.Problems == nil && d.Unenforced == nil
}

// Difference returns the delta between two states of a source's objects.
func Difference(was, now Objects) *Delta {
	d := NewDelta()
	for name, pods := range changed(byName(was.Pods, Pod.name), byName(now.Pods, Pod.name)) {
		d.Pods[name] = pods
	}
	policyName := func(p *networkingv1.NetworkPolicy) Name { return Name{p.Namespace, p.Name} }
	for name, policies := range changed(byName(was.Policies, policyName), byName(now.Policies, policyName)) {
		for _, p := range policies {
			d.Policies[name] = append(d.Policies[name], *p)
		}
		if len(policies) == 0 {
			d.Policies[name] = nil
		}
	}
	namespaceName := func(n Namespace) Name { return Name{Name: n.Name} }
	for name, same := range changed(byName(was.Namespaces, namespaceName), byName(now.Namespaces, namespaceName)) {
		if d.Namespaces[name.Name] = nil; len(same) > 0 {
			d.Namespaces[name.Name] = same[len(same)-1]
		}
	}
	d.Nodes = list(was.Nodes, now.Nodes)
	d.Workloads = list(was.Workloads, now.Workloads)
	d.Problems = list(was.Problems, now.Problems)
	d.Unenforced = list(was.Unenforced, now.Unenforced)
	return d
}

func (p Pod) name() Name { return Name{p.Namespace, p.Name} }

func byName[T any](objects []T, name func(T) Name) map[Name][]*T {
	by := make(map[Name][]*T, len(objects))
	for i := range objects {
		n := name(objects[i])
		by[n] = append(by[n], &objects[i])
	}
	return by
}

func changed[T any](was, now map[Name][]*T) map[Name][]*T {
	all := map[Name][]*T{}
	for name, objects := range now {
		if !slices.EqualFunc(was[name], objects, func(a, b *T) bool { return reflect.DeepEqual(*a, *b) }) {
			all[name] = objects
		}
	}
	for name := range was {
		if _, ok := now[name]; !ok {
			all[name] = nil
		}
	}
	return all
}

func list[T any](was, now []T) *[]T {
	if slices.EqualFunc(was, now, func(a, b T) bool { return reflect.DeepEqual(a, b) }) {
		return nil
	}
	return &now
}
