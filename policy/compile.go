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
// weir's enforcement. An Engine gives the same ruleset, and takes less time after small changes.
func Compile(state State) ruleset.Ruleset {
	policies, c := parseAll(state.Policies), index(state)
	r := compile(input{
		endpoints: c.endpoints, expected: c.expected, find: c, refused: state.Refused,
		policies: func(namespace string) []parsedPolicy { return policies.in[namespace] },
		families: familiesOf(state.Endpoints, newPlaces(state).nodes[state.Node]), networks: nodeNetworks(state.Nodes),
	})
	r.Problems = slices.Concat(state.Problems, policies.problems, c.problems(), r.Problems)
	return r.Ruleset
}

// input is what a node's ruleset is compiled from.
type input struct {
	endpoints []joined // in the order of their IDs
	// expected are the pods that will run on this node and have no address yet.
	expected []*Pod
	// policies returns the policies of a namespace, in the order of their names.
	policies func(namespace string) []parsedPolicy
	find     finder
	families []conf.Family
	// networks are the networks of all Nodes' pods.
	networks [len(conf.Families)]ruleset.Entries
	refused  ruleset.Refused
}

// finder finds the members of selector sets and of sets of named ports among all pods of the cluster.
type finder interface {
	// countSelected returns how many addresses of the family the selected pods have. The set has no more entries.
	countSelected(s selector, f conf.Family) int
	// selected returns the addresses of the family of the pods that the selector matches, as a set's entries. An address
	// that several pods share is among them if the selector matches all of these pods.
	selected(s selector, f conf.Family) ruleset.Entries
	// countNamed returns how many addresses of the family the pods with the named port have.
	countNamed(p namedPort, f conf.Family) int
	// named returns the addresses of the family of the pods that have the named port, each with that port's number, as a
	// set's entries. An address that several pods share is among them if the port has the same number in all of these
	// pods.
	named(p namedPort, f conf.Family) ruleset.Entries
}

// namedPort is a port that a policy names. If here is true, it is meant only for pods of this node.
type namedPort struct {
	name  string
	proto ruleset.Protocol
	here  bool
}

// compile returns the ruleset without the problems of the cluster's objects. It has the problems with what the node's
// kernel can't have.
func compile(in input) compiled {
	c := compiler{
		input: in, room: nodeRoom(), sets: map[string]ruleset.Set{}, supplies: map[string]*supply{},
		rules: map[rulesOf][]ruleset.Rule{}, stated: map[string]*statement{}, reported: map[string][]ruleset.Problem{},
	}
	groups := map[ruleset.Direction][]*group{}
	var demands []*demand
	for _, s := range []side{egress, ingress} {
		groups[s.direction] = c.groups(s)
		demands = append(demands, c.demands(s, groups[s.direction])...)
	}
	slices.SortStableFunc(demands, func(a, b *demand) int { return cmp.Compare(a.policy.name, b.policy.name) })
	c.addGranted(c.grant(demands))
	for _, c.family = range in.families {
		c.base()
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

// compiler is the state of one compile.
type compiler struct {
	input
	room     amount
	family   conf.Family // the family that is being compiled
	sets     map[string]ruleset.Set
	supplies map[string]*supply           // by name: the sets that policies' rules need
	rules    map[rulesOf][]ruleset.Rule   // the rules that allow packets
	stated   map[string]*statement        // by namespace
	reported map[string][]ruleset.Problem // by policy: the problems that were reported already
	out      compiled
}

// compiled is the result of one compile.
type compiled struct {
	ruleset.Ruleset
	// fit is true if the node has room for everything that the policies ask for. Then the sets may grow as long as
	// entries, the sum of their sizes, stays within the room.
	fit     bool
	entries float64
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
			set := c.refused.Without(s.filled(), func(_ ruleset.Entry, why string) {
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
	told := c.reported[policy.name]
	if len(told) >= maxProblems {
		return
	}
	name := strings.TrimSuffix(policy.name, maybeSuffix)
	p := ruleset.Problem{Object: "NetworkPolicy " + name, Field: "spec." + field, Message: why}
	if !slices.Contains(told, p) {
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
