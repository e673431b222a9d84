package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Names of the sets and chains that are always there. The sets are IPv4's; those of IPv6 have a 6 behind their names.
const (
	// PodsSet holds the addresses of every pod on the node. The plugin puts a pod in before its link comes up.
	PodsSet = conf.PodsSet
	// NetworksSet holds the networks that pods' addresses come from.
	NetworksSet = "weir-networks"
	// ChainedSet holds the addresses of pods whose network another plugin made.
	ChainedSet = "weir-chained"
	// LinksSet holds links that belong to one pod each, which another plugin made, for any address.
	LinksSet = "weir-links"
	// SendersSet holds the addresses of the same pods, each with its link.
	SendersSet = "weir-senders"

	forwardChain     = "WEIR-FORWARD"
	inputChain       = "WEIR-INPUT"
	errorsChain      = "WEIR-ERRORS"
	selfChain        = "WEIR-SELF"
	portsChain       = "WEIR-PORTS"
	acceptChain      = "WEIR-ACCEPT"
	postroutingChain = "WEIR-POSTROUTING"
)

// side is what differs between the directions.
type side struct {
	direction Direction
	local     string // where the pod that is judged stands in a packet: src or dst
	remote    string
	dispatch  string // the chain that sends a packet to its class
	prefix    string // of the classes' chains
	setPrefix string // of the classes' sets
}

var (
	egress  = side{Egress, "src", "dst", "WEIR-EGRESS", "WEIR-EG-", conf.EgressClasses}
	ingress = side{Ingress, "dst", "src", "WEIR-INGRESS", "WEIR-IN-", conf.IngressClasses}
)

// Class is the pods of this node to which the same policies apply in one direction. There is one for each family that
// they have addresses of.
type Class struct {
	Direction Direction `json:"direction"`
	Policies  []string  `json:"policies"` // none: the open class
	Set       string    `json:"set"`
	Chain     string    `json:"chain,omitempty"`
	Pods      []string  `json:"pods"`
}

// Compile turns what is known into what should be in the kernel. It is a pure function, and the specification of weir's
// enforcement.
func Compile(state State) Ruleset {
	policies := Parse(state.Policies, state.Parsed)
	c := compiler{
		cluster: index(state), refused: state.Refused, room: nodeRoom(), sets: map[string]Set{}, supplies: map[string]*supply{},
		rules: map[rulesOf][]Rule{}, reported: map[string][]Problem{},
	}
	c.out.Problems = slices.Concat(state.Problems, policies.problems, c.cluster.problems())
	groups := map[Direction][]*group{}
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
	slices.SortFunc(c.out.Chains, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		c.out.Sets = append(c.out.Sets, c.sets[name])
	}
	return c.out
}

type compiler struct {
	cluster  cluster
	refused  Refused
	room     amount
	family   conf.Family // that is being compiled
	sets     map[string]Set
	supplies map[string]*supply   // that policies' rules would go by, by name
	rules    map[rulesOf][]Rule   // that let through
	reported map[string][]Problem // by policy
	out      Ruleset
}

// rulesOf names what a policy lets through in one direction and family.
type rulesOf struct {
	direction Direction
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
			set := c.refused.without(s.Set, func(_ Entry, why string) { c.report(d.iso, d.field(s), why) })
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
func (c *compiler) members(g *group, set string) (entries []Entry, pods []string) {
	for _, e := range g.pods {
		in := false
		for _, a := range e.of(c.family) {
			entry := Entry{Element{Prefix: hostPrefix(a)}, e.Pod.String()}
			if why, refused := c.refused[Refusal{Family: c.family, Set: set, Element: entry.Element}]; refused {
				c.out.Problems = append(c.out.Problems, Problem{"Pod " + e.Pod.String(), "status.podIPs", fmt.Sprintf(
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
	var dispatch []Rule
	to := func(set string, entries []Entry, r Rule) {
		c.set(Set{Name: set, Type: HashIP, Role: Members, Dispatch: s.dispatch, Opens: true, Entries: entries})
		r.Sets = []SetMatch{{Name: set, Dir: s.local}}
		dispatch = append(dispatch, r)
	}
	none := Class{Direction: s.direction, Set: c.family.Set(s.setPrefix + "none"), Chain: s.prefix + "NONE"}
	var closed []Entry
	for _, g := range groups[:len(groups)-1] {
		class := none
		class.Policies = g.policies.all()
		rules := c.agreedRules(s, g.policies)
		id := hash(g.key + "\n" + contents(rules))
		set := c.family.Set(s.setPrefix + id)
		var entries []Entry
		if len(rules) > 0 && c.canBe(g, s, set) {
			class.Set, class.Chain = set, s.prefix+id
			entries, class.Pods = c.members(g, set)
			c.chain("mangle", class.Chain, dropRest(rules, class.Chain, "what none of the policies lets through")...)
			to(class.Set, entries, Rule{Target: GoTo, To: class.Chain, Comment: "weir: pods under " + strings.Join(class.Policies, ", ")})
		} else {
			entries, class.Pods = c.members(g, none.Set)
			closed = append(closed, entries...)
		}
		c.out.Classes = append(c.out.Classes, class)
	}
	// Pods whose policies let nothing through share a class that is there even if it is empty. So a policy that denies all,
	// which people want to hold at once, changes sets and no rules.
	c.chain("mangle", none.Chain, dropRest(nil, none.Chain, "their policies let nothing through")...)
	to(none.Set, closed, Rule{Target: GoTo, To: none.Chain, Comment: "weir: pods whose policies let nothing through"})
	class := Class{Direction: s.direction, Policies: []string{}, Set: c.family.Set(s.setPrefix + "open")}
	var entries []Entry
	entries, class.Pods = c.members(groups[len(groups)-1], class.Set)
	to(class.Set, entries, Rule{Target: Return, Comment: fmt.Sprintf("weir: pods under no %s policy", s.direction)})
	c.out.Classes = append(c.out.Classes, class)
	// What belongs to no connection that the kernel knows doesn't begin one by its looks alone: a server whose client's side
	// was forbidden and forgotten, or never seen, would open it again from its own. Packets that somebody has told the
	// kernel not to track open no connection, and none is ever established: each is judged, in both directions.
	dispatch = slices.Insert(dispatch, 0, Rule{
		Proto: TCP, Track: Midstream, Comment: "weir: a TCP connection begins with its first packet", Target: Drop,
	})
	c.chain("mangle", s.dispatch, dropRest(dispatch, s.dispatch, "pods that were not judged yet")...)
}

// dropRest are the chain's rules with an end at which what has come so far is logged and dropped.
func dropRest(rules []Rule, chain, why string) []Rule {
	return append(rules, Rule{Comment: "weir: " + why, Target: Log, To: "weir drop " + chain}, Rule{Comment: "weir: " + why, Target: Drop})
}

// contents is what a class's chain does. It is part of the chain's name, so a chain never changes under its members:
// new rules are a new chain with a new set, and one transaction replaces one by the other.
func contents(rules []Rule) string {
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
	why := c.refused.set(c.family, "", set)
	if why == "" {
		return true
	}
	for _, iso := range slices.Concat(g.policies...) {
		c.report(iso, string(s.direction), why+"; what the policy lets through is closed to pods that are under the same policies")
	}
	return false
}

// classRules are what the policies let through: one rule for each peer and group of ports.
func (c *compiler) classRules(s side, policies []isolation) []Rule {
	var rules []Rule
	for _, iso := range policies {
		rules = append(rules, c.rules[rulesOf{s.direction, c.family, iso.name}]...)
	}
	return rules
}

func (c *compiler) chain(table, name string, rules ...Rule) {
	c.out.Chains = append(c.out.Chains, Chain{c.family, table, name, rules})
}

// set adds a set of the family, its entries in order. Where one address has several words the first ones stay.
func (c *compiler) set(s Set) {
	if s.Type != BitmapPort { // ports have no family
		s.Family = c.family
	}
	c.sets[s.Name] = worded(s)
}

// worded is the set with its entries in order, their words as the kernel keeps them.
func worded(s Set) Set {
	for i := range s.Entries {
		s.Entries[i].Comment = conf.Comment(s.Entries[i].Comment)
	}
	s.Entries = order(s.Entries)
	return s
}

func order(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Element == b.Element })
}
