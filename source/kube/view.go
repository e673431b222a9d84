package kube

import (
	"context"
	"errors"

	"github.com/weir-net/weir/policy"
)

// errNotListed means that not all objects were listed yet.
var errNotListed = errors.New("the API server has not sent all objects yet")

// View returns the present objects, of the pods only those that keep returns true for. It knows no Services, because no
// ruleset depends on them, so the source doesn't watch them. Callers don't change the results.
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
	for _, p := range c.pods.known {
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
