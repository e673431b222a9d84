package kube

import (
	"context"
	"errors"

	"github.com/weir-net/weir/policy"
)

var errNotListed = errors.New("the API server has not sent all objects yet")

// View returns the present objects except Services, with only those pods for which the function keep returns true. It
// includes the policies that stay in force while their namespace is being deleted. Callers must not change the
// results. Until all objects have been listed, View returns an error.
func (s *Source) View(_ context.Context, keep func(*policy.Pod) bool) (policy.Objects, []policy.Service, error) {
	s.published.mu.Lock()
	c := s.published.cluster
	s.published.mu.Unlock()
	if c == nil {
		return policy.Objects{}, nil, errNotListed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.complete() {
		return policy.Objects{}, nil, errNotListed
	}
	o := policy.Objects{Nodes: *values(c.nodes)}
	for _, p := range c.pods.known.All() {
		if keep(p) {
			o.Pods = append(o.Pods, *p)
		}
	}
	for _, n := range c.namespaces {
		o.Namespaces = append(o.Namespaces, *n.Namespace)
	}
	for _, p := range c.policies {
		o.Policies = append(o.Policies, p)
	}
	o.Policies = append(o.Policies, c.departing.kept()...)
	if u := s.unenforced.Load(); u != nil {
		o.Unenforced = *u
	}
	return o, nil, nil
}
