package agent

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/report"
	"github.com/weir-net/weir/policy/ruleset"
)

// What is said of a pod in place of its policies' names.
const (
	classOpen   = "open"
	classClosed = "closed"
	// classBefore: rules of an earlier agent's judge the pod, and this one hasn't brought its own into the kernel yet.
	classBefore = "as before"
	// classUnknown: whether there are such rules can't be read.
	classUnknown = "unknown"
)

// earlier is what the kernel held for the pods when it was last looked at before the first sync.
type earlier struct {
	members map[ruleset.Direction]map[netip.Addr]bool // nil: it couldn't be read
	looked  bool
}

// lookBefore notes whom rules of an earlier agent's judge, until this agent has brought its own into the kernel.
func (a *agent) lookBefore() {
	if len(a.ruleset.Sets) > 0 {
		return
	}
	members, err := a.driver.Members()
	if err != nil {
		a.Log.Warn("which pods the rules of the agent before judge can't be read", "error", err)
	}
	a.earlier = earlier{members, true}
}

// enforced says what judges the endpoint's pod in that direction: the names of policies, or one of the words above.
func (a *agent) enforced(d ruleset.Direction, e endpoint.Endpoint) string {
	held := func(addr endpoint.Address) bool { return a.earlier.members[d][addr.Addr] }
	switch {
	case len(a.ruleset.Sets) > 0: // this agent's own
		return class(a.ruleset.Classes, d, e.Pod.String())
	case !a.earlier.looked || a.earlier.members == nil:
		return classUnknown
	case slices.ContainsFunc(e.Addresses, held):
		return classBefore
	}
	return classClosed
}

// Files is a Source that reads files, and knows what became of each.
type Files interface {
	// Files is called at any time. Nobody changes what it has returned.
	Files() []report.File
}

// reportFiles logs what was left out, once for each state of the files.
func (a *agent) reportFiles() {
	source, ok := a.Source.(Files)
	if !ok {
		return
	}
	was := a.leftOut
	a.leftOut = map[[3]string]bool{}
	a.files = source.Files()
	for _, f := range a.files {
		for _, o := range f.Objects {
			key := [3]string{f.Path, o.Where, o.Why}
			if o.State != report.LeftOut || o.Object != "" { // objects are problems
				continue
			}
			if a.leftOut[key] = true; !was[key] {
				a.Log.Info("a document is left out", "file", f.Path, "where", o.Where, "why", policy.Excerpt(o.Why))
			}
		}
	}
}

// reportUnenforced logs policies that are there and that weir doesn't enforce, when they come and when they go.
func (a *agent) reportUnenforced() {
	if a.objects == nil {
		return
	}
	var now []policy.Unenforced
	for _, u := range a.objects.Unenforced {
		now = append(now, policy.Unenforced{Kind: policy.Excerpt(u.Kind), Where: policy.Excerpt(u.Where), Count: u.Count})
	}
	log := func(say func(string, ...any), msg string, list, except []policy.Unenforced) {
		for _, u := range list {
			same := func(o policy.Unenforced) bool { return o.Kind == u.Kind && o.Where == u.Where }
			if !slices.ContainsFunc(except, same) {
				say(msg, "kind", u.Kind, "where", u.Where)
			}
		}
	}
	log(a.Log.Warn, "there may be a policy that weir doesn't enforce", now, a.unenforced)
	log(a.Log.Info, "no longer: there may be a policy that weir doesn't enforce", a.unenforced, now)
	a.unenforced = now
}
