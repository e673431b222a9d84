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
	// NodesSet holds the addresses of all nodes, the only senders of tunnel packets.
	NodesSet = "weir-nodes"

	forwardChain     = "WEIR-FORWARD"
	inputChain       = "WEIR-INPUT"
	errorsChain      = "WEIR-ERRORS"
	selfChain        = "WEIR-SELF"
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
	c := compiler{cluster: index(state), sets: map[string]Set{}, overfull: map[string]string{}, made: map[string]int{}, reported: map[string][]Problem{}}
	c.out.Problems = slices.Concat(state.Problems, policies.problems, c.cluster.problems())
	for _, c.family = range families(state) {
		c.base(state)
		for _, s := range []side{egress, ingress} {
			c.classes(s, policies.in)
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
	family   conf.Family // that is being compiled
	sets     map[string]Set
	overfull map[string]string    // sets that there can't be, and why
	made     map[string]int       // how many sets each namespace's policies have brought along
	reported map[string][]Problem // by policy
	out      Ruleset
}

// classes makes one set and one chain for each class of the side, and the chain that dispatches to them.
func (c *compiler) classes(s side, policies map[string][]isolation) {
	type members struct {
		key      string
		policies alternatives
		entries  []Entry
		pods     []string
	}
	byPolicies := map[string]*members{}
	at := func(applied alternatives) *members {
		names := applied.names()
		k := strings.Join(names, "\n") // no name has one, and it is quicker than key, for every pod
		if byPolicies[k] == nil {
			byPolicies[k] = &members{key: key(names...), policies: applied}
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
		m := at(alternatives{nil})
		if e.Enforcement != conf.Off {
			m = at(applied(s.direction, policies[e.Pod.Namespace], e.pods...))
		}
		addrs := e.of(c.family)
		for _, a := range addrs {
			m.entries = append(m.entries, Entry{Element{Prefix: hostPrefix(a)}, e.Pod.String()})
		}
		if len(addrs) > 0 {
			m.pods = append(m.pods, e.Pod.String())
		}
	}
	var dispatch []Rule
	to := func(set string, entries []Entry, r Rule) {
		c.set(Set{Name: set, Type: HashIP, Role: Members, Dispatch: s.dispatch, Entries: entries})
		r.Sets = []SetMatch{{Name: set, Dir: s.local}}
		dispatch = append(dispatch, r)
	}
	// Classes with more policies come first. A policy that comes moves pods to classes further ahead, and one that goes
	// takes its classes with it, so either way all its pods change class in the transaction that changes the rules.
	order := slices.SortedFunc(maps.Keys(byPolicies), func(a, b string) int {
		return cmp.Or(cmp.Compare(byPolicies[b].policies.count(), byPolicies[a].policies.count()), cmp.Compare(byPolicies[a].key, byPolicies[b].key))
	})
	none := Class{Direction: s.direction, Set: c.family.Set(s.setPrefix + "none"), Chain: s.prefix + "NONE"}
	var closed []Entry
	for _, k := range order[:len(order)-1] {
		m := byPolicies[k]
		class := none
		class.Pods = m.pods
		class.Policies = m.policies.all()
		if rules := c.agreedRules(s, m.policies); len(rules) > 0 {
			id := hash(m.key + "\n" + contents(rules))
			class.Set, class.Chain = c.family.Set(s.setPrefix+id), s.prefix+id
			c.chain("mangle", class.Chain, dropRest(rules, class.Chain, "what none of the policies lets through")...)
			to(class.Set, m.entries, Rule{Target: GoTo, To: class.Chain, Comment: "weir: pods under " + strings.Join(class.Policies, ", ")})
		} else {
			closed = append(closed, m.entries...)
		}
		c.out.Classes = append(c.out.Classes, class)
	}
	// Pods whose policies let nothing through share a class that is there even if it is empty. So a policy that denies all,
	// which people want to hold at once, changes sets and no rules.
	c.chain("mangle", none.Chain, dropRest(nil, none.Chain, "their policies let nothing through")...)
	to(none.Set, closed, Rule{Target: GoTo, To: none.Chain, Comment: "weir: pods whose policies let nothing through"})
	open := byPolicies[order[len(order)-1]]
	class := Class{Direction: s.direction, Policies: []string{}, Set: c.family.Set(s.setPrefix + "open"), Pods: open.pods}
	to(class.Set, open.entries, Rule{Target: Return, Comment: fmt.Sprintf("weir: pods under no %s policy", s.direction)})
	c.out.Classes = append(c.out.Classes, class)
	// What belongs to no connection that the kernel knows doesn't begin one by its looks alone: a server whose client's side
	// was forbidden and forgotten, or never seen, would open it again from its own. Packets that somebody has told the kernel
	// not to track open no connection, and none is ever established: each is judged, in both directions.
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

// classRules are what the policies let through: one rule for each peer and group of ports.
func (c *compiler) classRules(s side, policies []isolation) []Rule {
	var rules []Rule
	for _, iso := range policies {
		for _, r := range iso.rules[s.direction] {
			for _, p := range r.peers {
				if !p.means(c.family) {
					continue
				}
				for _, ports := range r.ports {
					match, why := c.peers(s, iso, p)
					if why != "" {
						c.report(iso, p.field, why)
						continue
					}
					more, words, why := c.ports(s, iso, ports)
					if why != "" {
						c.report(iso, r.field+".ports", why)
						continue
					}
					rules = append(rules, Rule{
						Proto: ports.proto, Ports: ports.ranges, Sets: slices.Concat(match, more), Target: Return,
						Comment: fmt.Sprintf("weir: %s %s: %s%s", iso.name, p.field, p.words, words),
					})
				}
			}
		}
	}
	return rules
}

// peers makes the set that the peer is matched by, or says why there is none.
func (c *compiler) peers(s side, iso isolation, p peer) (match []SetMatch, why string) {
	if p.everyone {
		return nil, ""
	}
	name := c.family.Set(p.set)
	return []SetMatch{{Name: name, Dir: s.remote}}, c.filled(iso, name, func() Set {
		if p.selector != nil {
			return Set{Name: name, Type: HashIP, Role: Peers, Entries: c.cluster.selected(*p.selector, c.family)}
		}
		return Set{Name: name, Type: HashNet, Role: Peers, Entries: slices.Collect(p.of(c.family))}
	})
}

// ports makes the set that ports are matched by if they are no numbers, or too many to stand in the rule, or says why there
// is none.
//
// A name's set has the pods that have the port, each with its number. Beside a peer's set in one rule it means that peer's
// pods. The number is in no rule, so a pod that has another one changes the set only. Where the port is that of the pods the
// policy selects, those of this node are enough.
func (c *compiler) ports(s side, iso isolation, p ports) (match []SetMatch, words, why string) {
	switch {
	case p.name != "":
		name := c.family.Set("weir-port-" + hash(key(string(s.direction), p.name, string(p.proto))))
		return []SetMatch{{Name: name, Dir: "dst,dst"}}, ", port " + p.name, c.filled(iso, name, func() Set {
			return Set{Name: name, Type: HashIPPort, Role: Peers, Entries: c.cluster.named(p.name, p.proto, s.direction == Ingress, c.family)}
		})
	case len(p.numbers) > 0:
		name := "weir-numbers-" + hash(key(fmt.Sprint(p.numbers))) // which both families go by
		return []SetMatch{{Name: name, Dir: "dst"}}, fmt.Sprintf(", %d ports", count(p.numbers)), c.filled(iso, name, func() Set {
			return Set{Name: name, Type: BitmapPort, Role: Peers, Entries: numbers(p.numbers)}
		})
	}
	return nil, "", ""
}

func (c *compiler) chain(table, name string, rules ...Rule) {
	c.out.Chains = append(c.out.Chains, Chain{c.family, table, name, rules})
}

// set adds a set of the family, its entries in order. Where one address has several words the first ones stay.
func (c *compiler) set(s Set) {
	if s.Type != BitmapPort { // ports have no family
		s.Family = c.family
	}
	for i := range s.Entries {
		s.Entries[i].Comment = conf.Comment(s.Entries[i].Comment)
	}
	s.Entries = order(s.Entries)
	c.sets[s.Name] = s
}

func order(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Element == b.Element })
}
