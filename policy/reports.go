package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

type reports struct {
	by      map[reportOf][]ruleset.Problem
	changed bool
}

type reportOf struct {
	pod       *pod
	policy    Name
	ambiguous Name       // a name that several pods may have
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

func (r *reports) all() (problems []ruleset.Problem) {
	for _, some := range r.by {
		problems = append(problems, some...)
	}
	return problems
}
