package policy

import (
	"cmp"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// mostWaiting is an amount of work, in the unit of sliceWork. If parsing a namespace's waiting policies took this much
// work, the policies wait no longer, and are compiled (see TakeParsed).
const mostWaiting = 1 << 10

// Unparsed has large policies of one name whose rules aren't parsed yet. Until the rules are parsed, the policies
// isolate their pods and allow nothing.
type Unparsed struct {
	name     Name
	policies []*networkingv1.NetworkPolicy
	effort   float64
	parsed   []parsedPolicy
}

// NextUnparsed returns the large policies to parse next, or nil if all are parsed. The caller must call Parse, and
// then TakeParsed.
func (e *Engine) NextUnparsed() *Unparsed {
	if len(e.unparsed) == 0 {
		return nil
	}
	done := e.compiler.work.done
	first := func(a, b Name) int {
		return cmp.Or(
			cmp.Compare(done[a.Namespace]+e.unparsed[a], done[b.Namespace]+e.unparsed[b]),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}
	var u Unparsed
	for name := range e.unparsed {
		if u.policies == nil || first(name, u.name) < 0 {
			u = Unparsed{name: name, policies: e.policiesOf(name), effort: e.unparsed[name]}
		}
	}
	return &u
}

// Parse parses the policies. It may run at the same time as any method of the engine.
func (u *Unparsed) Parse() {
	u.parsed = make([]parsedPolicy, len(u.policies))
	for i, np := range u.policies {
		u.parsed[i] = parse(np)
	}
}

// TakeParsed gives the parsed policies to the engine. If policies of this name have changed meanwhile, it gives nothing
// to the engine. In both cases, the effort counts as work for the namespace. Otherwise a policy that always changes
// would always be parsed first.
//
// Compiling a namespace takes long, so its parsed policies wait, and are compiled together. They are compiled in each
// of these cases:
//
//   - The sum of their efforts is at least the sum for the namespace's policies that were parsed and compiled before.
//   - The sum of their efforts is at least mostWaiting.
//   - No policy of the namespace is left to parse.
func (e *Engine) TakeParsed(u *Unparsed) {
	e.compiler.work.add(u.name.Namespace, u.effort)
	if _, ok := e.unparsed[u.name]; !ok || !slices.Equal(e.policiesOf(u.name), u.policies) {
		return
	}
	delete(e.unparsed, u.name)
	s, local := e.space(u.name.Namespace), e.isLocal(u.name.Namespace)
	var problems []ruleset.Problem
	for i := range u.parsed {
		if problems = append(problems, u.parsed[i].problems...); local {
			s.policies[u.name.Name][i].parsed = &u.parsed[i]
		}
	}
	e.reports.set(reportOf{policy: u.name}, problems)
	if s.waiting += u.effort; local && (s.waiting >= min(s.used, mostWaiting) || !e.hasUnparsed(s.name)) {
		s.parsed, e.touched[s.name] = nil, true
		s.used, s.waiting = s.used+s.waiting, 0
	}
	if !e.hasUnparsed(s.name) {
		s.used, s.waiting = 0, 0
	}
}

func (e *Engine) hasUnparsed(namespace string) bool {
	for name := range e.unparsed {
		if name.Namespace == namespace {
			return true
		}
	}
	return false
}

func (e *Engine) parseAll() {
	for name := range e.unparsed {
		u := Unparsed{name: name, policies: e.policiesOf(name)}
		u.Parse()
		e.TakeParsed(&u)
	}
}

func (e *Engine) policiesOf(name Name) (policies []*networkingv1.NetworkPolicy) {
	for _, np := range e.space(name.Namespace).policies[name.Name] {
		policies = append(policies, np.NetworkPolicy)
	}
	return policies
}

func parseEffort(np *networkingv1.NetworkPolicy) float64 { return float64(bulk(np)) / bulkPerWork }
