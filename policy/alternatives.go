package policy

import (
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// alternatives are the policies that isolate a pod in one direction, for each of the pods that it may be: one list,
// where that is certain, and no two alike.
type alternatives [][]parsedPolicy

// maybeSuffix marks a policy of which it isn't known whether it selects the pod.
const maybeSuffix = " (may select it)"

// applied are the policies of the namespace that isolate the pod. A policy that may select it, or may not, isolates it
// and lets nothing through.
func applied(d ruleset.Direction, policies []parsedPolicy, pods ...Pod) alternatives {
	var all alternatives
	for _, p := range pods {
		var list []parsedPolicy
		for _, policy := range policies {
			if _, isolates := policy.rules[d]; !isolates {
				continue
			}
			switch policy.selects(p) {
			case yes:
				list = append(list, policy)
			case maybe:
				policy.name += maybeSuffix
				policy.rules = map[ruleset.Direction][]rule{d: {}}
				list = append(list, policy)
			}
		}
		if !slices.ContainsFunc(all, func(o []parsedPolicy) bool { return slices.EqualFunc(o, list, sameName) }) {
			all = append(all, list)
		}
	}
	return all
}

func sameName(a, b parsedPolicy) bool { return a.name == b.name }

// names tell different alternatives apart: equal names mean equal rules.
func (a alternatives) names() []string {
	var names []string
	for i, list := range a {
		if i > 0 {
			names = append(names, "or")
		}
		for _, policy := range list {
			names = append(names, policy.name)
		}
	}
	return names
}

// all are the names of all the policies, each once.
func (a alternatives) all() []string {
	var names []string
	for _, list := range a {
		for _, policy := range list {
			if !slices.Contains(names, policy.name) {
				names = append(names, policy.name)
			}
		}
	}
	return names
}

func (a alternatives) count() int {
	n := 0
	for _, list := range a {
		n += len(list)
	}
	return n
}

// agreedRules let through what each of the alternatives lets through by a rule of its own that is the same as the
// others'. An alternative without policies is open, and agrees with any rule.
func (c *compiler) agreedRules(s side, a alternatives) []ruleset.Rule {
	var agreed []ruleset.Rule
	first := true
	for _, policies := range a {
		if len(policies) == 0 {
			continue
		}
		rules := c.classRules(s, policies)
		if first {
			agreed, first = rules, false
			continue
		}
		agreed = slices.DeleteFunc(agreed, func(r ruleset.Rule) bool {
			return !slices.ContainsFunc(rules, r.SameAs)
		})
	}
	return agreed
}
