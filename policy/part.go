package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type local struct {
	namespace string
	policies  []parsedPolicy // ordered by name
	endpoints []joined       // ordered by ID
	expected  []*Pod
}

// part is what the compiler has computed for one namespace. If pods or policies of the namespace change, a new part
// replaces it.
type part struct {
	*local
	stale   bool
	groups  [len(sides)][]*group
	open    [len(sides)][]joined
	asks    map[askKey]*ask
	demands []*demand  // demands of the asks, ordered by comparePolicies
	wants   []*supply  // sets that the demands need
	rules   float64    // how many rules in the kernel the demands need
	stated  complaints // problems of demands that the kernel refuses, or that are too many for a whole node

	granted    []*demand
	decided    complaints       // those of stated, and the problems of demands that aren't granted
	regranted  bool             // true if granted has changed
	released   []*demand        // granted demands whose rules and sets are in the ruleset
	pending    []*demand        // granted demands whose sets are still to be made, in order
	made       int              // how many granted demands have all their sets, but no rules yet
	begun      map[*supply]bool // sets in the ruleset for made and pending demands
	due        float64          // work of the namespace, done and to be done, at the end of which nothing is pending
	fresh      bool             // true until grant has decided, and while sets aren't counted
	waits      bool             // true if the last compile reached its limit before the work was done
	waited     int              // how many compiles in a row have left work undone
	changed    bool             // true if classified must be computed again
	classified classified
}

func (c *compiler) partOf(l *local) *part {
	b := builder{compiler: c, part: &part{local: l, fresh: true, asks: map[askKey]*ask{}}, made: map[string]*supply{}}
	if was := c.parts[l.namespace]; was != nil {
		b.last = was.asks
	}
	for i, s := range sides {
		b.groups[i], b.open[i] = l.groups(s)
	}
	b.demand()
	return b.part
}

// comparePolicies puts audited policies last, so that they never take room from enforced ones.
func comparePolicies(a, b *parsedPolicy) int {
	if a.audited != b.audited {
		if b.audited {
			return -1
		}
		return 1
	}
	return strings.Compare(a.name, b.name)
}

type group struct {
	key      string
	policies alternatives
	audited  bool
	pods     []joined
}

func (l *local) groups(s *side) (groups []*group, open []joined) {
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
	// Pods that are expected on this node already get classes. So their enrolment changes only sets, and ADD is
	// quicker.
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

type complaints struct {
	all  []ruleset.Problem
	told map[string][]ruleset.Problem // by policy: the problems that were already reported
}

func (r *complaints) then() complaints { return complaints{slices.Clip(r.all), maps.Clone(r.told)} }

// add adds the problems of the policy from another value of complaints.
func (r *complaints) add(policy *parsedPolicy, all []ruleset.Problem) {
	if len(all) > 0 && len(r.told[policy.name]) == 0 { // the policy has no problems yet, so none can be equal
		r.tell(policy, all...)
		return
	}
	for _, p := range all {
		r.report(policy, strings.TrimPrefix(p.Field, "spec."), p.Message)
	}
}

func (r *complaints) report(policy *parsedPolicy, field, why string) {
	told := r.told[policy.name]
	if len(told) >= maxProblems {
		return
	}
	name := strings.TrimSuffix(policy.name, maybeSuffix)
	p := ruleset.Problem{Object: "NetworkPolicy " + name, Field: "spec." + field, Message: why}
	if !slices.Contains(told, p) {
		r.tell(policy, p)
	}
}

func (r *complaints) tell(policy *parsedPolicy, all ...ruleset.Problem) {
	if r.told == nil {
		r.told = map[string][]ruleset.Problem{}
	}
	r.told[policy.name] = append(slices.Clip(r.told[policy.name]), all...)
	r.all = append(r.all, all...)
}
