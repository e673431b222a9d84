package policy

import (
	"reflect"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// Name is the namespace and the name of an object. For an object outside of namespaces, Namespace is empty.
type Name struct{ Namespace, Name string }

// Delta has the objects of a source that have changed since the last delta. Nobody may change these objects.
type Delta struct {
	// Pods has a list for each name with which a pod has been added, changed or removed. The list has all pods that have
	// this name now, so it may be empty. In a directory of manifests, several pods may have the same name.
	Pods map[Name][]*Pod
	// Policies has such lists for the names of policies.
	Policies   map[Name][]*networkingv1.NetworkPolicy
	Namespaces map[string]*Namespace

	// Each of the following lists is complete, or nil if nothing in it has changed. Nodes have all their claims, also
	// invalid ones.
	Nodes      *[]Node
	Workloads  *[]Workload
	Problems   *[]ruleset.Problem
	Unenforced *[]Unenforced

	// Number is how many deltas with changes the source has made so far. The first delta counts even if it is empty.
	// Number is 0 if the source doesn't number deltas.
	Number uint64
}

func NewDelta() *Delta {
	return &Delta{
		Pods: map[Name][]*Pod{}, Policies: map[Name][]*networkingv1.NetworkPolicy{}, Namespaces: map[string]*Namespace{},
	}
}

// Empty reports whether the delta has no changes. Number doesn't matter.
func (d *Delta) Empty() bool {
	return len(d.Pods)+len(d.Policies)+len(d.Namespaces) == 0 &&
		d.Nodes == nil && d.Workloads == nil && d.Problems == nil && d.Unenforced == nil
}

// Difference returns the delta that turns one state of a source's objects into another.
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
