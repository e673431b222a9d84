package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// reports are the problems of the cluster's objects, by what they are about. The zero value has none.
type reports struct {
	by      map[reportOf][]ruleset.Problem
	changed bool
}

// reportOf is what some problems are about. At most one field isn't zero. If all fields are zero, the problems are
// those that the source has reported.
type reportOf struct {
	pod       *pod
	policy    Name
	ambiguous Name       // the pods of this name
	shared    netip.Addr // an address of several pods
}

func (r *reports) set(of reportOf, problems []ruleset.Problem) {
	if len(problems) == 0 && len(r.by) == 0 || slices.Equal(r.by[of], problems) {
		return
	}
	if r.by == nil {
		r.by = map[reportOf][]ruleset.Problem{}
	}
	r.changed = true
	if r.by[of] = problems; len(problems) == 0 {
		delete(r.by, of)
	}
}

// all returns all problems, in no order.
func (r *reports) all() (problems []ruleset.Problem) {
	for _, some := range r.by {
		problems = append(problems, some...)
	}
	return problems
}
