package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// side is what differs between the directions.
type side struct {
	direction ruleset.Direction
	local     string // where the pod that is judged stands in a packet: src or dst
	remote    string
	dispatch  string // the chain that sends a packet to its class
	prefix    string // of the classes' chains
	setPrefix string // of the classes' sets
}

var (
	egress  = side{ruleset.Egress, "src", "dst", conf.EgressChain, conf.EgressClassChains, conf.EgressClasses}
	ingress = side{ruleset.Ingress, "dst", "src", conf.IngressChain, conf.IngressClassChains, conf.IngressClasses}
)

// Compile turns what is known into what should be in the kernel. It is a pure function, and the specification of weir's
// enforcement.
func Compile(state State) ruleset.Ruleset {
	policies := Parse(state.Policies, state.Parsed)
	c := compiler{
		cluster: index(state), refused: state.Refused, room: nodeRoom(), sets: map[string]ruleset.Set{}, supplies: map[string]*supply{},
		rules: map[rulesOf][]ruleset.Rule{}, reported: map[string][]ruleset.Problem{},
	}
	c.out.Problems = slices.Concat(state.Problems, policies.problems, c.cluster.problems())
	groups := map[ruleset.Direction][]*group{}
	var demands []*demand
	for _, s := range []side{egress, ingress} {
		groups[s.direction] = c.groups(s, policies.in)
		demands = append(demands, c.demands(s, groups[s.direction], families(state))...)
	}
	slices.SortStableFunc(demands, func(a, b *demand) int { return cmp.Compare(a.iso.name, b.iso.name) })
	c.supply(c.grant(demands))
	for _, c.family = range families(state) {
		c.base(state)
		for _, s := range []side{egress, ingress} {
			c.classes(s, groups[s.direction])
		}
	}
	slices.SortFunc(c.out.Chains, func(a, b ruleset.Chain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		c.out.Sets = append(c.out.Sets, c.sets[name])
	}
	return c.out
}

type compiler struct {
	cluster  cluster
	refused  ruleset.Refused
	room     amount
	family   conf.Family // that is being compiled
	sets     map[string]ruleset.Set
	supplies map[string]*supply           // that policies' rules would go by, by name
	rules    map[rulesOf][]ruleset.Rule   // that let through
	reported map[string][]ruleset.Problem // by policy
	out      ruleset.Ruleset
}

// rulesOf names what a policy lets through in one direction and family.
type rulesOf struct {
	direction ruleset.Direction
	family    conf.Family
	policy    string
}

// supply puts the rules and sets that the granted demands need where they are taken from.
func (c *compiler) supply(granted []*demand) {
	for _, d := range granted {
		for _, r := range d.rules {
			k := rulesOf{d.side.direction, r.family, d.iso.name}
			c.rules[k] = append(c.rules[k], r.Rule)
		}
		for _, s := range d.sets {
			set := c.refused.Without(s.Set, func(_ ruleset.Entry, why string) { c.report(d.iso, d.field(s), why) })
			if _, ok := c.sets[s.Name]; !ok {
				c.sets[s.Name] = worded(set)
			}
		}
	}
}

// group is the pods of a class, of both families.
type group struct {
	key      string
	policies alternatives
	pods     []local
}

// groups are the endpoints by the policies that apply to them, the open ones last.
//
// Classes with more policies come first. A policy that comes moves pods to classes further ahead, and one that goes
// takes its classes with it, so either way all its pods change class in the transaction that changes the rules.
func (c *compiler) groups(s side, policies map[string][]isolation) []*group {
	byPolicies := map[string]*group{}
	at := func(applied alternatives) *group {
		names := applied.names()
		k := strings.Join(names, "\n") // no name has one, and it is quicker than key, for every pod
		if byPolicies[k] == nil {
			byPolicies[k] = &group{key: key(names...), policies: applied}
		}
		return byPolicies[k]
	}
	at(alternatives{nil}) // the open class is there even if it is empty
	// And so are the classes of pods that are still to come: when one is attached, which must not take long, sets change only.
	for _, p := range c.cluster.expected {
		at(applied(s.direction, policies[p.Namespace], p))
	}
	for _, e := range c.cluster.endpoints {
		if !e.known { // closed: in no class
			continue
		}
		g := at(alternatives{nil})
		if e.Enforcement != conf.Off {
			g = at(applied(s.direction, policies[e.Pod.Namespace], e.pods...))
		}
		g.pods = append(g.pods, e)
	}
	return slices.SortedFunc(maps.Values(byPolicies), func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.policies.count(), a.policies.count()), cmp.Compare(a.key, b.key))
	})
}

// members are the pods of the group in the set, which is one of the family's.
func (c *compiler) members(g *group, set string) (entries []ruleset.Entry, pods []string) {
	for _, e := range g.pods {
		in := false
		for _, a := range e.of(c.family) {
			entry := ruleset.Entry{Element: ruleset.Element{Prefix: hostPrefix(a)}, Comment: e.Pod.String()}
			if why, refused := c.refused[ruleset.Refusal{Family: c.family, Set: set, Element: entry.Element}]; refused {
				c.out.Problems = append(c.out.Problems, ruleset.Problem{Object: "Pod " + e.Pod.String(), Field: "status.podIPs", Message: fmt.Sprintf(
					"the kernel refuses %s in the set %s: %s; the pod is closed", a, set, why)})
				continue
			}
			entries, in = append(entries, entry), true
		}
		if in {
			pods = append(pods, e.Pod.String())
		}
	}
	return entries, pods
}

// classes makes one set and one chain for each class of the side, and the chain that dispatches to them.
func (c *compiler) classes(s side, groups []*group) {
	var dispatch []ruleset.Rule
	to := func(set string, entries []ruleset.Entry, r ruleset.Rule) {
		c.set(ruleset.Set{Name: set, Kind: ruleset.Addresses, Role: ruleset.Members, Dispatch: s.dispatch, Opens: true, Entries: entries})
		r.Sets = []ruleset.SetMatch{{Name: set, Dir: s.local}}
		dispatch = append(dispatch, r)
	}
	none := ruleset.Class{Direction: s.direction, Set: c.family.Set(s.setPrefix + "none"), Chain: s.prefix + "NONE"}
	var closed []ruleset.Entry
	for _, g := range groups[:len(groups)-1] {
		class := none
		class.Policies = g.policies.all()
		rules := c.agreedRules(s, g.policies)
		id := hash(g.key + "\n" + contents(rules))
		set := c.family.Set(s.setPrefix + id)
		var entries []ruleset.Entry
		if len(rules) > 0 && c.canBe(g, s, set) {
			class.Set, class.Chain = set, s.prefix+id
			entries, class.Pods = c.members(g, set)
			c.chain("mangle", class.Chain, dropRest(rules, class.Chain, "what none of the policies lets through")...)
			to(class.Set, entries, ruleset.Rule{Action: ruleset.GoTo, To: class.Chain, Comment: "weir: pods under " + strings.Join(class.Policies, ", ")})
		} else {
			entries, class.Pods = c.members(g, none.Set)
			closed = append(closed, entries...)
		}
		c.out.Classes = append(c.out.Classes, class)
	}
	// Pods whose policies let nothing through share a class that is there even if it is empty. So a policy that denies all,
	// which people want to hold at once, changes sets and no rules.
	c.chain("mangle", none.Chain, dropRest(nil, none.Chain, "their policies let nothing through")...)
	to(none.Set, closed, ruleset.Rule{Action: ruleset.GoTo, To: none.Chain, Comment: "weir: pods whose policies let nothing through"})
	class := ruleset.Class{Direction: s.direction, Policies: []string{}, Set: c.family.Set(s.setPrefix + "open")}
	var entries []ruleset.Entry
	entries, class.Pods = c.members(groups[len(groups)-1], class.Set)
	to(class.Set, entries, ruleset.Rule{Action: ruleset.Return, Comment: fmt.Sprintf("weir: pods under no %s policy", s.direction)})
	c.out.Classes = append(c.out.Classes, class)
	// What belongs to no connection that the kernel knows doesn't begin one by its looks alone: a server whose client's side
	// was forbidden and forgotten, or never seen, would open it again from its own. Packets that somebody has told the
	// kernel not to track open no connection, and none is ever established: each is judged, in both directions.
	dispatch = slices.Insert(dispatch, 0, ruleset.Rule{
		Proto: ruleset.TCP, Track: ruleset.Midstream, Comment: "weir: a TCP connection begins with its first packet", Action: ruleset.Drop,
	})
	c.chain("mangle", s.dispatch, dropRest(dispatch, s.dispatch, "pods that were not judged yet")...)
}

// dropRest are the chain's rules with an end at which what has come so far is logged and dropped.
func dropRest(rules []ruleset.Rule, chain, why string) []ruleset.Rule {
	return append(rules, ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Log, To: "weir drop " + chain}, ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Drop})
}

// contents is what a class's chain does. It is part of the chain's name, so a chain never changes under its members:
// new rules are a new chain with a new set, and one transaction replaces one by the other.
func contents(rules []ruleset.Rule) string {
	var b strings.Builder
	for _, r := range rules {
		b.WriteString(r.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// canBe says whether there can be the class's set, and tells of its policies that there can't: then nothing is let
// through.
func (c *compiler) canBe(g *group, s side, set string) bool {
	why := c.refused.Set(c.family, "", set)
	if why == "" {
		return true
	}
	for _, iso := range slices.Concat(g.policies...) {
		c.report(iso, string(s.direction), why+"; what the policy lets through is closed to pods that are under the same policies")
	}
	return false
}

// classRules are what the policies let through: one rule for each peer and group of ports.
func (c *compiler) classRules(s side, policies []isolation) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, iso := range policies {
		rules = append(rules, c.rules[rulesOf{s.direction, c.family, iso.name}]...)
	}
	return rules
}

func (c *compiler) chain(table, name string, rules ...ruleset.Rule) {
	c.out.Chains = append(c.out.Chains, ruleset.Chain{Family: c.family, Table: table, Name: name, Rules: rules})
}

// set adds a set of the family, its entries in order. Where one address has several words the first ones stay.
func (c *compiler) set(s ruleset.Set) {
	if s.Kind != ruleset.Ports { // ports have no family
		s.Family = c.family
	}
	c.sets[s.Name] = worded(s)
}

// worded is the set with its entries in order, their words as the kernel keeps them.
func worded(s ruleset.Set) ruleset.Set {
	for i := range s.Entries {
		s.Entries[i].Comment = conf.Comment(s.Entries[i].Comment)
	}
	s.Entries = ruleset.Order(s.Entries)
	return s
}
