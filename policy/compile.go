package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Compile turns a state into the ruleset that the kernel should have. It is a pure function, and the specification of
// weir's enforcement.
func Compile(state State) ruleset.Ruleset {
	policies := Parse(state.Policies, state.Parsed)
	c := compiler{
		cluster: index(state), refused: state.Refused, room: nodeRoom(),
		sets: map[string]ruleset.Set{}, supplies: map[string]*supply{},
		rules: map[rulesOf][]ruleset.Rule{}, reported: map[string][]ruleset.Problem{},
	}
	c.out.Problems = slices.Concat(state.Problems, policies.problems, c.cluster.problems())
	groups := map[ruleset.Direction][]*group{}
	var demands []*demand
	for _, s := range []side{egress, ingress} {
		groups[s.direction] = c.groups(s, policies.in)
		demands = append(demands, c.demands(s, groups[s.direction], families(state))...)
	}
	slices.SortStableFunc(demands, func(a, b *demand) int { return cmp.Compare(a.policy.name, b.policy.name) })
	c.addGranted(c.grant(demands))
	for _, c.family = range families(state) {
		c.base(state)
		for _, s := range []side{egress, ingress} {
			c.classes(s, groups[s.direction])
		}
	}
	ruleset.SortChains(c.out.Chains)
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		c.out.Sets = append(c.out.Sets, c.sets[name])
	}
	return c.out
}

// compiler is the state of one Compile.
type compiler struct {
	cluster  cluster
	refused  ruleset.Refused
	room     amount
	family   conf.Family // the family that is being compiled
	sets     map[string]ruleset.Set
	supplies map[string]*supply           // by name: the sets that policies' rules need
	rules    map[rulesOf][]ruleset.Rule   // the rules that allow packets
	reported map[string][]ruleset.Problem // by policy: the problems that were reported already
	out      ruleset.Ruleset
}

// rulesOf is the key of the rules by which a policy allows packets in one direction and family.
type rulesOf struct {
	direction ruleset.Direction
	family    conf.Family
	policy    string
}

// addGranted adds the rules and sets of the granted demands.
func (c *compiler) addGranted(granted []*demand) {
	for _, d := range granted {
		for _, r := range d.rules {
			k := rulesOf{d.side.direction, r.family, d.policy.name}
			c.rules[k] = append(c.rules[k], r.Rule)
		}
		for _, s := range d.sets {
			set := c.refused.Without(s.Set, func(_ ruleset.Entry, why string) {
				c.report(d.policy, d.field(s), refusedByKernel(why))
			})
			if _, ok := c.sets[s.Name]; !ok {
				c.sets[s.Name] = set
			}
		}
	}
}

// classRules returns the rules by which the policies allow packets: one for each peer and group of ports.
func (c *compiler) classRules(s side, policies []parsedPolicy) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, policy := range policies {
		rules = append(rules, c.rules[rulesOf{s.direction, c.family, policy.name}]...)
	}
	return rules
}

// report reports a problem of a policy once, however many classes the policy isolates.
func (c *compiler) report(policy parsedPolicy, field, why string) {
	name := strings.TrimSuffix(policy.name, maybeSuffix)
	p := ruleset.Problem{Object: "NetworkPolicy " + name, Field: "spec." + field, Message: why}
	if told := c.reported[policy.name]; len(told) < maxProblems && !slices.Contains(told, p) {
		c.reported[policy.name] = append(told, p)
		c.out.Problems = append(c.out.Problems, p)
	}
}

// chain adds a chain that rules of other chains jump or go to.
func (c *compiler) chain(name string, rules ...ruleset.Rule) {
	c.out.Chains = append(c.out.Chains, ruleset.Chain{Family: c.family, Name: name, Rules: rules})
}

// hook adds a chain that packets enter at a hook.
func (c *compiler) hook(h ruleset.Hook, name, comment string, rules ...[]ruleset.Rule) {
	c.out.Chains = append(c.out.Chains, ruleset.Chain{
		Family: c.family, Name: name, Hook: h, Comment: comment, Rules: slices.Concat(rules...),
	})
}

// set adds a set of the family that is being compiled.
func (c *compiler) set(s ruleset.Set) {
	s.Family = c.family
	c.sets[s.Name] = s
}

// entry returns a set's entry for an address or network.
func entry(p netip.Prefix, comment string) ruleset.Entry {
	return ruleset.Entry{Element: ruleset.Element{Prefix: p}, Comment: comment}
}
