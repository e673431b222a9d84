package agent

import "github.com/weir-net/weir/policy/ruleset"

// noted returns a problem for each of the backend's notes. After a failed apply, the last notes stay.
func (r *round) noted() []ruleset.Problem {
	if !r.applied.done() {
		return r.kernel.notes
	}
	object := "this node"
	if r.Node.Name != "" {
		object = "Node " + r.Node.Name
	}
	r.kernel.notes = nil
	for _, n := range r.applied.Notes {
		r.kernel.notes = append(r.kernel.notes, ruleset.Problem{Object: object, Field: n.About, Message: n.Message})
	}
	return r.kernel.notes
}
