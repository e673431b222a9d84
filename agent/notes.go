package agent

import "github.com/weir-net/weir/policy/ruleset"

// problemsOfBackend returns a problem for each of the backend's notes (netfilter.Result.Notes). After a failed apply,
// the last notes stay. If no backend works, problemsOfBackend returns one problem that says so.
func (r *round) problemsOfBackend() []ruleset.Problem {
	object := "this node"
	if r.Node.Name != "" {
		object = "Node " + r.Node.Name
	}
	if r.moving.inUse == "" && r.moving.chosen.Reason != "" {
		return []ruleset.Problem{{
			Object: object, Field: "backend", Message: (neither{r.moving.chosen.Reason}).err().Error(),
		}}
	}
	if !r.applied.done() {
		return r.kernel.notes
	}
	r.kernel.notes = nil
	for _, n := range r.applied.Notes {
		r.kernel.notes = append(r.kernel.notes, ruleset.Problem{Object: object, Field: n.About, Message: n.Message})
	}
	return r.kernel.notes
}
