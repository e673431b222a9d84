package kube

import "github.com/weir-net/weir/policy/enforced"

// Position returns the resourceVersions up to which the watches have reported changes, and the number of the delta with
// the last of these changes. ok is true if all objects have been listed and the resourceVersions are numbers.
func (s *Source) Position() (at enforced.Position, delta uint64, ok bool) {
	s.published.mu.Lock()
	c := s.published.cluster
	s.published.mu.Unlock()
	if c == nil {
		return at, 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.mirrors
	at = enforced.Position{
		Pods: m.pods.position, Namespaces: m.namespaces.position, Nodes: m.nodes.position, Policies: m.policies.position,
	}
	if delta = c.number; c.waiting() {
		delta++
	}
	return at, delta, c.complete() && at.Pods > 0 && at.Namespaces > 0 && at.Nodes > 0 && at.Policies > 0
}
