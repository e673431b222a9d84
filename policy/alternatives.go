package policy

import (
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

type alternatives [][]parsedPolicy

// maybeSuffix follows a policy's name if the policy's selector depends on a label whose value is unknown.
const maybeSuffix = " (may select it)"

func isolatingPolicies(d ruleset.Direction, policies []parsedPolicy, pods ...*Pod) alternatives {
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

// auditedGroup is the beginning of the names of groups with audited policies. No policy can have this name.
const auditedGroup = "audited"

// split returns the enforced policies if there are any, and otherwise the audited ones. If a pod has policies of both
// kinds, the audited ones could only allow more, and so would drop nothing.
func (a alternatives) split() (deciding alternatives, audited bool) {
	enforces := false
	for _, list := range a {
		for i := range list {
			audited, enforces = audited || list[i].audited, enforces || !list[i].audited
		}
	}
	if !audited || !enforces {
		return a, audited
	}
	for _, list := range a {
		var enforced []parsedPolicy
		for i := range list {
			if !list[i].audited {
				enforced = append(enforced, list[i])
			}
		}
		if !slices.ContainsFunc(deciding, func(o []parsedPolicy) bool { return slices.EqualFunc(o, enforced, sameName) }) {
			deciding = append(deciding, enforced)
		}
	}
	return deciding, false
}

func sameName(a, b parsedPolicy) bool { return a.name == b.name }

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

func (l *lowering) agreedRules(a alternatives) []ruleset.Rule {
	var agreed []ruleset.Rule
	first := true
	for _, policies := range a {
		if len(policies) == 0 {
			continue
		}
		rules := l.classRules(policies)
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
