package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Names of the sets and chains that are always there.
const (
	// PodsSet holds the addresses of every pod on the node. The plugin puts a pod in before its link comes up.
	PodsSet = conf.PodsSet
	// NetworksSet holds the networks that pods' addresses come from.
	NetworksSet = "weir-networks"
	// NodesSet holds the addresses of all nodes, the only senders of tunnel packets.
	NodesSet = "weir-nodes"

	forwardChain     = "WEIR-FORWARD"
	inputChain       = "WEIR-INPUT"
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
	egress  = side{Egress, "src", "dst", "WEIR-EGRESS", "WEIR-EG-", "weir-eg-"}
	ingress = side{Ingress, "dst", "src", "WEIR-INGRESS", "WEIR-IN-", "weir-in-"}
)

// Class is the pods of this node to which the same policies apply in one direction.
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
	policies, problems := parsePolicies(state.Policies)
	c := compiler{
		cluster: index(state),
		sets:    map[string]Set{},
		out:     Ruleset{Problems: problems},
	}
	c.base(state)
	for _, s := range []side{egress, ingress} {
		c.classes(s, policies)
	}
	slices.SortFunc(c.out.Chains, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		c.out.Sets = append(c.out.Sets, c.sets[name])
	}
	return c.out
}

type compiler struct {
	cluster cluster
	sets    map[string]Set
	out     Ruleset
}

// base is what doesn't depend on any policy.
func (c *compiler) base(state State) {
	var pods []Entry
	networks := map[netip.Prefix]Entry{}
	for _, n := range state.Nodes {
		for _, p := range n.PodCIDRs {
			if p.Addr().Is4() {
				networks[p] = Entry{p, "pods of node " + n.Name}
			}
		}
	}
	for _, e := range state.Endpoints {
		for _, a := range e.Addresses {
			pods = append(pods, Entry{hostPrefix(a.Addr), e.Pod.String()})
			if _, ok := networks[a.Subnet]; !ok {
				networks[a.Subnet] = Entry{a.Subnet, "pods of this node"}
			}
		}
	}
	c.set(Set{Name: PodsSet, Type: HashIP, Role: Judged, Entries: pods})
	c.set(Set{Name: NetworksSet, Type: HashNet, Role: Judged, Entries: slices.Collect(maps.Values(networks))})

	from, to := SetMatch{Name: PodsSet, Dir: "src"}, SetMatch{Name: PodsSet, Dir: "dst"}
	noPodFrom, noPodTo := SetMatch{PodsSet, "src", true}, SetMatch{PodsSet, "dst", true}
	established := Rule{Track: Established, Comment: "weir: connections that were let through", Target: Return}
	cut := Rule{Track: Cut, Comment: "weir: connections cut by a later change of policy", Target: Drop}
	fromPod := Rule{Sets: []SetMatch{from}, Comment: "weir: from a pod: its egress policies", Target: JumpTo, To: egress.dispatch}
	stranger := Rule{In: conf.Bridge, Sets: []SetMatch{noPodFrom}, Comment: "weir: from the bridge, but from no pod", Target: Drop}

	toTunnel, intoTunnel := c.tunnel(state)
	c.chain("mangle", forwardChain, slices.Concat([]Rule{established, cut}, toTunnel, []Rule{
		{In: conf.Bridge, Self: true, Comment: "weir: a pod reaching itself through its Service", Target: Return},
		fromPod, stranger,
		{Sets: []SetMatch{to}, Comment: "weir: to a pod: its ingress policies", Target: JumpTo, To: ingress.dispatch},
		{Out: conf.Bridge, Sets: []SetMatch{noPodTo}, Comment: "weir: to the bridge, but to no pod", Target: Drop},
	})...)
	// What a pod sends to its own node. What the node sends to its pods isn't judged: kubelet's probes always pass.
	c.chain("mangle", inputChain, slices.Concat(intoTunnel, []Rule{established, cut, fromPod, stranger})...)
	c.chain("filter", acceptChain,
		Rule{Sets: []SetMatch{from}, Comment: "weir: judged in the mangle table", Target: Accept},
		Rule{Sets: []SetMatch{to}, Comment: "weir: judged in the mangle table", Target: Accept},
	)
	c.chain("nat", postroutingChain, Rule{
		Sets:    []SetMatch{from, {NetworksSet, "dst", true}},
		Comment: "weir: pods reach the world beyond their networks as their node", Target: Masquerade,
	})
	jump := func(table, chain string, first bool, to, comment string) {
		c.out.Jumps = append(c.out.Jumps, Jump{table, chain, first, Rule{Comment: comment, Target: JumpTo, To: to}})
	}
	jump("mangle", "FORWARD", true, forwardChain, "weir: what no policy lets through to or from a pod is dropped")
	jump("mangle", "INPUT", true, inputChain, "weir: egress policies hold towards this node too")
	jump("filter", "FORWARD", false, acceptChain, "weir: no other default drops what policy let through")
	jump("nat", "POSTROUTING", false, postroutingChain, "weir: the way of pods to the outside")
}

// tunnel are the rules that guard the overlay's port. What a pod sends to that port of a node would be masqueraded, look
// like the node's own tunnel packet, and carry a forged sender past every policy. And nobody but nodes may send to it:
// that rule stands before the established one, because a tunnel's packets are no connection that was ever judged.
func (c *compiler) tunnel(state State) (forward, input []Rule) {
	if !state.Overlay {
		return nil, nil
	}
	var nodes []Entry
	for _, n := range state.Nodes {
		for _, a := range n.Addresses {
			if a.Is4() {
				nodes = append(nodes, Entry{hostPrefix(a), "node " + n.Name})
			}
		}
	}
	c.set(Set{Name: NodesSet, Type: HashIP, Role: Peers, Entries: nodes})
	port := []PortRange{{conf.OverlayPort, conf.OverlayPort}}
	forward = []Rule{{
		Proto: UDP, Ports: port, Sets: []SetMatch{{PodsSet, "src", false}, {NodesSet, "dst", false}},
		Comment: "weir: pods send nothing into the tunnels between nodes", Target: Drop,
	}}
	input = []Rule{{
		Proto: UDP, Ports: port, Sets: []SetMatch{{NodesSet, "src", true}},
		Comment: "weir: tunnel packets come from nodes only", Target: Drop,
	}}
	return forward, input
}

// classes makes one set and one chain for each class of the side, and the chain that dispatches to them.
func (c *compiler) classes(s side, policies []isolation) {
	type members struct {
		policies []isolation
		entries  []Entry
		pods     []string
	}
	byPolicies := map[string]*members{}
	at := func(applied []isolation) *members {
		var applying []string
		for _, iso := range applied {
			applying = append(applying, iso.name)
		}
		k := key(applying...)
		if byPolicies[k] == nil {
			byPolicies[k] = &members{policies: applied}
		}
		return byPolicies[k]
	}
	at(nil) // the open class is there even if it is empty
	for _, e := range c.cluster.endpoints {
		if !e.known { // closed: in no class
			continue
		}
		var applied []isolation
		for _, iso := range policies {
			if _, isolates := iso.rules[s.direction]; isolates && e.selectedBy(iso) {
				applied = append(applied, iso)
			}
		}
		m := at(applied)
		m.pods = append(m.pods, e.Pod.String())
		for _, a := range e.Addresses {
			m.entries = append(m.entries, Entry{hostPrefix(a.Addr), e.Pod.String()})
		}
	}
	var dispatch []Rule
	// Classes with more policies come first. A policy that comes moves pods to classes further ahead, and one that goes
	// takes its classes with it, so either way all its pods change class in the transaction that changes the rules.
	order := slices.SortedFunc(maps.Keys(byPolicies), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(byPolicies[b].policies), len(byPolicies[a].policies)), cmp.Compare(a, b))
	})
	for _, k := range order {
		m := byPolicies[k]
		class := Class{Direction: s.direction, Policies: []string{}, Pods: m.pods}
		for _, iso := range m.policies {
			class.Policies = append(class.Policies, iso.name)
		}
		r := Rule{Target: Return, Comment: fmt.Sprintf("weir: pods under no %s policy", s.direction)}
		if len(m.policies) == 0 {
			class.Set = s.setPrefix + "open"
		} else {
			rules := c.classRules(s, m.policies)
			id := hash(k + "\n" + contents(rules))
			class.Set, class.Chain = s.setPrefix+id, s.prefix+id
			rules = append(rules,
				Rule{Comment: "weir: what none of the policies lets through", Target: Log, To: "weir drop " + class.Chain},
				Rule{Comment: "weir: what none of the policies lets through", Target: Drop})
			c.chain("mangle", class.Chain, rules...)
			r = Rule{Target: GoTo, To: class.Chain, Comment: "weir: pods under " + strings.Join(class.Policies, ", ")}
		}
		c.set(Set{Name: class.Set, Type: HashIP, Role: Members, Dispatch: s.dispatch, Entries: m.entries})
		r.Sets = []SetMatch{{Name: class.Set, Dir: s.local}}
		dispatch = append(dispatch, r)
		c.out.Classes = append(c.out.Classes, class)
	}
	dispatch = append(dispatch,
		Rule{Comment: "weir: pods that were not judged yet", Target: Log, To: "weir drop " + s.dispatch},
		Rule{Comment: "weir: pods that were not judged yet", Target: Drop})
	c.chain("mangle", s.dispatch, dispatch...)
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
				var sets []SetMatch
				if !p.everyone {
					name := c.peers(p)
					if name == "" {
						continue
					}
					sets = []SetMatch{{Name: name, Dir: s.remote}}
				}
				for _, ports := range r.ports {
					rules = append(rules, Rule{
						Proto: ports.proto, Ports: ports.ranges, Sets: sets, Target: Return,
						Comment: fmt.Sprintf("weir: %s %s: %s", iso.name, p.field, p.words),
					})
				}
			}
		}
	}
	return rules
}

// peers makes the peer's set, if another rule hasn't, and returns its name; empty if nobody can ever be in it.
func (c *compiler) peers(p peer) string {
	if p.selector == nil {
		if len(p.prefixes) == 0 {
			return ""
		}
		var entries []Entry
		var parts []string
		for _, prefix := range p.prefixes {
			entries = append(entries, Entry{prefix, p.words})
			parts = append(parts, prefix.String())
		}
		name := "weir-net-" + hash(key(parts...))
		c.set(Set{Name: name, Type: HashNet, Role: Peers, Entries: entries})
		return name
	}
	name := "weir-sel-" + hash(p.selector.key())
	if _, ok := c.sets[name]; !ok {
		c.set(Set{Name: name, Type: HashIP, Role: Peers, Entries: c.cluster.selected(*p.selector)})
	}
	return name
}

func (c *compiler) chain(table, name string, rules ...Rule) {
	c.out.Chains = append(c.out.Chains, Chain{table, name, rules})
}

// set orders the entries. Where one address has several words the first ones stay.
func (c *compiler) set(s Set) {
	for i := range s.Entries {
		s.Entries[i].Comment = comment(s.Entries[i].Comment)
	}
	slices.SortFunc(s.Entries, func(a, b Entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Comment, b.Comment))
	})
	s.Entries = slices.CompactFunc(s.Entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
	c.sets[s.Name] = s
}
