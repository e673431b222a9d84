package policy

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/policy/ruleset"
)

type alternatives [][]*parsedPolicy

// maybeSuffix follows a policy's name if the policy's selector depends on a label whose value is unknown.
const maybeSuffix = " (may select it)"

// PlainName returns the policy's name without maybeSuffix. The names in a ruleset.Class may have this suffix.
func PlainName(name string) string { return strings.TrimSuffix(name, maybeSuffix) }

// isolating has the policies of a namespace that isolate pods in one direction.
type isolating struct {
	direction ruleset.Direction
	policies  []*parsedPolicy // in the order of their names
	// anchored has the indexes of policies, by anchor. An anchor is a label (key and value), or stands for all
	// labels with a certain key (requirement.anchors). A pod that a policy selects has at least one of the policy's
	// anchors. others has the indexes of the policies without anchors.
	anchored map[anchor][]int
	others   []int
}

func newIsolating(d ruleset.Direction, policies []parsedPolicy) *isolating {
	x := &isolating{direction: d, anchored: map[anchor][]int{}}
	for i := range policies {
		policy, at := &policies[i], len(x.policies)
		if _, isolates := policy.rules[d]; !isolates {
			continue
		}
		x.policies = append(x.policies, policy)
		where := anchoring(policy.pods, x.anchored).anchors()
		for _, a := range where {
			x.anchored[a] = append(x.anchored[a], at)
		}
		if len(where) == 0 {
			x.others = append(x.others, at)
		}
	}
	return x
}

// candidates returns the indexes, in order, of the policies that may select the pod.
func (x *isolating) candidates(p *Pod) []int {
	all := slices.Clone(x.others)
	if len(p.Unknown) > 0 {
		all = all[:0]
		for i := range x.policies {
			all = append(all, i)
		}
		return all
	}
	for k, v := range p.Labels {
		all = append(append(all, x.anchored[anchor{key: k, value: v}]...), x.anchored[anchor{key: k, any: true}]...)
	}
	slices.Sort(all)
	return all
}

func (x *isolating) of(pods ...*Pod) alternatives {
	var all alternatives
	for _, p := range pods {
		var list []*parsedPolicy
		for _, i := range x.candidates(p) {
			policy := x.policies[i]
			switch policy.selects(p) {
			case yes:
				list = append(list, policy)
			case maybe:
				unknown := *policy
				unknown.name += maybeSuffix
				unknown.rules = map[ruleset.Direction][]rule{x.direction: {}}
				list = append(list, &unknown)
			}
		}
		if !slices.ContainsFunc(all, func(o []*parsedPolicy) bool { return slices.EqualFunc(o, list, sameName) }) {
			all = append(all, list)
		}
	}
	return all
}

// auditedGroup comes before the policies' names in group.key if the group's policies are audited. No policy has this
// name, because a policy's name contains a slash (NAMESPACE/NAME).
const auditedGroup = "audited"

// split returns only the enforced policies if there are any, otherwise the audited policies. audited is true if it
// returns audited policies. If a pod has enforced policies, its audited policies would drop nothing: the enforced
// policies isolate the pod already, and the audited policies would only allow more.
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
		var enforced []*parsedPolicy
		for i := range list {
			if !list[i].audited {
				enforced = append(enforced, list[i])
			}
		}
		if !slices.ContainsFunc(deciding, func(o []*parsedPolicy) bool { return slices.EqualFunc(o, enforced, sameName) }) {
			deciding = append(deciding, enforced)
		}
	}
	return deciding, false
}

func sameName(a, b *parsedPolicy) bool { return a == b || a.name == b.name }

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

// all returns the name of each policy once.
func (a alternatives) all() []string {
	names := make([]string, 0, a.count())
	has := make(map[string]bool, a.count())
	for _, list := range a {
		for _, policy := range list {
			if !has[policy.name] {
				has[policy.name], names = true, append(names, policy.name)
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

func (l *classifier) agreedRules(a alternatives) []ruleset.Rule {
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
