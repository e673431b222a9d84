package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// local has what the compiler needs to know about one namespace with pods of this node.
type local struct {
	namespace string
	policies  []parsedPolicy  // ordered by name
	endpoints []localEndpoint // ordered by ID
	expected  []*Pod
}

// part has what the compiler has computed for one namespace. If pods or policies of the namespace change, a new part
// replaces it.
type part struct {
	*local
	stale   bool
	groups  [len(sides)][]*group
	open    [len(sides)][]localEndpoint
	asks    map[askKey]*ask
	demands []*demand // what the policies need (see demand), ordered by comparePolicies
	wants   []*supply // sets that the demands need
	rules   float64   // how many rules in the kernel the demands need
	// stated has the problems of demands that the kernel refuses, and the problems of policies that are refused because
	// the demands of this namespace alone exceed the node's capacity.
	stated problemList

	// The states of a demand are granted, pending, ready and placed (docs/architecture.md, From a policy to its rules).
	granted    []*demand
	decided    problemList      // the problems in stated, and those of demands that aren't granted
	regranted  bool             // true if granted has changed since the last call of survey
	pending    []*demand        // granted demands whose sets are incomplete, in the order in which the sets are made
	ready      int              // how many granted demands have all their sets, but no rules yet
	placed     []*demand        // granted demands whose rules and sets are in the ruleset
	making     map[*supply]bool // sets in the ruleset for ready and pending demands
	due        float64          // the sum of the namespace's work so far and the work for its pending demands
	undecided  bool             // true until grant has decided on all demands; some sets may have to be counted first
	unfinished bool             // true if the last compile reached its limit before the work was done
	waited     int              // how many compiles in a row have left work undone
	changed    bool             // true if classified must be computed again
	classified classified
}

func (c *compiler) partOf(l *local) *part {
	b := builder{
		compiler: c, part: &part{local: l, undecided: true, asks: map[askKey]*ask{}}, created: map[string]*supply{},
	}
	if was := c.parts[l.namespace]; was != nil {
		b.last = was.asks
		b.demands, b.wants = make([]*demand, 0, len(was.demands)), make([]*supply, 0, len(was.wants))
	}
	for i, s := range sides {
		b.groups[i], b.open[i] = l.groups(s)
	}
	b.demand()
	return b.part
}

// comparePolicies puts audited policies last, so that they never take capacity from enforced ones.
func comparePolicies(a, b *parsedPolicy) int {
	if a.audited != b.audited {
		if b.audited {
			return -1
		}
		return 1
	}
	return strings.Compare(a.name, b.name)
}

// group has pods of one namespace with the same isolating policies in one direction. For each family, classify makes
// one class of the group.
type group struct {
	key      string
	policies alternatives
	audited  bool
	pods     []localEndpoint
}

func (l *local) groups(s *side) (groups []*group, open []localEndpoint) {
	byPolicies := map[string]*group{}
	at := func(all alternatives) *group {
		isolating, audited := all.split()
		names := isolating.names()
		if audited {
			names = append([]string{auditedGroup}, names...)
		}
		k := strings.Join(names, "\n") // unique, because no name contains a newline; faster to compute than key
		if byPolicies[k] == nil {
			byPolicies[k] = &group{key: key(names...), policies: isolating, audited: audited}
		}
		return byPolicies[k]
	}
	notIsolated, policies := at(alternatives{nil}), newIsolating(s.direction, l.policies)
	// Pods that are expected on this node get their classes before they are attached. So their enrolment changes only
	// sets, and ADD is quicker.
	for _, p := range l.expected {
		at(policies.of(p))
	}
	for _, e := range l.endpoints {
		if !e.known { // the pod is closed, so it is in no class
			continue
		}
		g := notIsolated
		if e.Enforcement != conf.Off {
			g = at(policies.of(e.pods...))
		}
		g.pods = append(g.pods, e)
	}
	for _, g := range byPolicies {
		if g != notIsolated {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b *group) int { return strings.Compare(a.key, b.key) })
	return groups, notIsolated.pods
}

// problemList has the problems of a namespace's policies. It has at most maxProblems of each policy, and no problem
// twice.
type problemList struct {
	all      []ruleset.Problem
	byPolicy map[string][]ruleset.Problem
}

func (r *problemList) clone() problemList {
	return problemList{slices.Clip(r.all), maps.Clone(r.byPolicy)}
}

// add adds the policy's problems to r. The parameter all comes from another problemList. add leaves out problems that r
// already has.
func (r *problemList) add(policy *parsedPolicy, all []ruleset.Problem) {
	if len(all) > 0 && len(r.byPolicy[policy.name]) == 0 { // the policy has no problems yet, so none is a duplicate
		r.set(policy, slices.Clip(all))
		r.all = append(r.all, all...)
		return
	}
	for _, p := range all {
		r.append(policy, p)
	}
}

func (r *problemList) report(policy *parsedPolicy, field, why string) {
	if len(r.byPolicy[policy.name]) < maxProblems { // otherwise the text needn't be made
		r.append(policy, ruleset.ProblemOfPolicy(PlainName(policy.name), "spec."+field, why))
	}
}

func (r *problemList) append(policy *parsedPolicy, p ruleset.Problem) {
	reported := r.byPolicy[policy.name]
	if len(reported) < maxProblems && !slices.Contains(reported, p) {
		r.set(policy, append(slices.Clip(reported), p))
		r.all = append(r.all, p)
	}
}

func (r *problemList) set(policy *parsedPolicy, all []ruleset.Problem) {
	if r.byPolicy == nil {
		r.byPolicy = map[string][]ruleset.Problem{}
	}
	r.byPolicy[policy.name] = all
}
