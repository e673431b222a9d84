package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

type reports struct {
	by      map[reportOf][]ruleset.Problem
	changed bool
	// ofPolicy is true if problems of a policy have changed.
	ofPolicy bool
	kept     bool // see KeepReports
}

// KeepReports sets whether later rulesets keep the present list of problems, even if the problems of single objects
// change. The list can wait: a problem alone changes no set and no rule, and a new list takes time for each problem
// of the cluster.
//
// Changed problems of policies don't wait: weirctl wait shows them once the policy is enforced.
func (e *Engine) KeepReports(keep bool) { e.reports.kept = keep }

// due reports whether the next ruleset needs a new list of problems.
func (r *reports) due() bool { return r.changed && (r.ofPolicy || !r.kept) }

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
	r.changed, r.ofPolicy = true, r.ofPolicy || of.policy != Name{}
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
