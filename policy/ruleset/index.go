package ruleset

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
)

// Index evaluates packets as a Simulator does. The time for a packet doesn't grow with the number of rules, sets and
// members, so an Index can evaluate each connection of a node. It keeps what it has computed, so only one goroutine may
// use it.
//
// An Index looks up each address once. The result is the address's signature: which of the rules' sets and networks
// contain the address. In each chain, the signature leads to rows: the rules that may match addresses with this
// signature, by protocol and port.
//
// NewIndex reads the rules, but not the sets' entries. The Index looks the first addresses up in each set. It makes a
// table of all entries when it has seen so many addresses that the table takes less time.
type Index struct {
	// hooks has, for each family, the chains of CheckForwarded and CheckToNode.
	hooks   [len(conf.Families)][2]*indexedChain
	members members
}

// indexedChain is a chain with the rules that may decide on a connection's first packet, in order.
type indexedChain struct {
	number int // the chain's number in the Index, from 0
	rules  []indexedRule
	// pivots has, for each end of a packet, the rules that an address of that end leads to.
	pivots [ends]pivots
	// rest has the rules that no address leads to.
	rest *row
	rows [ends]map[*signature]*row
	// verdicts has the verdicts on packets that were compared with many rules. It is nil if the chain sends packets to
	// other chains, or looks up sources with their links.
	verdicts map[verdictOf]Action
}

// verdictOf is the key of a verdict. Packets that differ only in their sources have the same verdict if the sources
// have the same signature.
type verdictOf struct {
	Packet
	source   *signature
	toItself bool
}

// end is an end of a packet: its source or its destination.
type end uint8

const (
	source end = iota
	destination
	ends
)

// indexedRule is a rule whose sets and chains were found. Its first fields decide on most packets. They are together,
// because most of an evaluation's time goes to memory that isn't in the processor's caches.
type indexedRule struct {
	class class
	// simple is true if only the protocol and the port of a packet need to be compared: the rule has no other
	// condition, or only one on an address, and that address has led to the rule.
	simple bool
	// onePort is true if the rule's ports are those from first to last.
	onePort     bool
	first, last uint16
	*Rule
	to      *indexedChain
	members []memberMatch // of Rule.Sets, Rule.Src and Rule.Dst
	ports   []portMatch   // of Rule.Sets
	// pivot is the index of the match in members that leads to the rule; -1 if none does.
	pivot int
}

// memberMatch matches a packet if the group contains the packet's address at that end.
type memberMatch struct {
	group int32 // none: nothing is in the group
	end   end
	not   bool
	// exact is the set if the address alone doesn't decide: the set's entries have ports or links too.
	exact *Set
}

// none is the group of a set that doesn't exist, or that can't contain the part of a packet that the rule looks up.
const none = -1

// portMatch matches a packet if the set contains the packet's port. Without a set, nothing is in the set.
type portMatch struct {
	set *Set
	not bool
}

type class uint8

const (
	anyClass class = iota
	tcpClass
	udpClass
	sctpClass
	icmpClass
	icmpv6Class
	otherClass // all other protocols
	classes
)

// classOf returns the class of the protocol, which is a name or a number.
func classOf(p Protocol) class {
	switch p {
	case "":
		return anyClass
	case TCP:
		return tcpClass
	case UDP:
		return udpClass
	case SCTP:
		return sctpClass
	case ICMP, "1":
		return icmpClass
	case ICMPv6, "58":
		return icmpv6Class
	}
	return otherClass
}

// NewIndex returns an Index of the ruleset. The ruleset must not change while the Index is in use.
func NewIndex(r Ruleset) *Index {
	x := &Index{}
	b := indexer{
		members: &x.members, sets: make(map[string]*Set, len(r.Sets)), chains: make(map[chainName]*Chain, len(r.Chains)),
		done: map[chainName]*indexedChain{}, groups: map[groupOf]int32{},
	}
	for i := range r.Sets {
		b.sets[r.Sets[i].Name] = &r.Sets[i]
	}
	for i := range r.Chains {
		b.chains[chainName{r.Chains[i].Family, r.Chains[i].Name}] = &r.Chains[i]
	}
	for _, c := range r.Chains {
		switch c.Hook {
		case CheckForwarded:
			x.hooks[c.Family][0] = b.chain(chainName{c.Family, c.Name})
		case CheckToNode:
			x.hooks[c.Family][1] = b.chain(chainName{c.Family, c.Name})
		}
	}
	return x
}

// indexer makes an Index. It indexes only the chains that packets can reach.
type indexer struct {
	members *members
	sets    map[string]*Set
	chains  map[chainName]*Chain
	done    map[chainName]*indexedChain
	groups  map[groupOf]int32
}

type chainName struct {
	family conf.Family
	name   string
}

// groupOf is the key of a group: the name of a set, or a network that a rule matches itself.
type groupOf struct {
	set     string
	network netip.Prefix
}

// chain indexes the chain and all chains that its rules send packets to. It returns nil if there is no such chain.
func (b *indexer) chain(name chainName) *indexedChain {
	if c, ok := b.done[name]; ok {
		return c
	}
	chain := b.chains[name]
	if chain == nil {
		return nil
	}
	c := &indexedChain{number: len(b.done), rest: &row{}, rules: make([]indexedRule, 0, len(chain.Rules))}
	b.done[name] = c
	alone := true
	for i := range chain.Rules {
		if !chain.Rules[i].decides() {
			continue
		}
		r := b.rule(&chain.Rules[i])
		if number := int32(len(c.rules)); r.pivot >= 0 {
			m := r.members[r.pivot]
			c.pivots[m.end].add(m.group, number)
		} else {
			c.rest.rules = append(c.rest.rules, number)
		}
		if r.Action == Jump || r.Action == GoTo {
			r.to, alone = b.chain(chainName{name.family, r.To}), false
		}
		for _, m := range r.members {
			alone = alone && (m.exact == nil || m.end == destination)
		}
		c.rules = append(c.rules, r)
	}
	if alone {
		c.verdicts = map[verdictOf]Action{}
	}
	return c
}

// decides reports whether the rule can match a connection's first packet and decide on it.
func (r *Rule) decides() bool {
	switch r.Action {
	case Drop, Return, Jump, GoTo:
	default:
		return false
	}
	return (r.Track == "" || r.Track == Untranslated) && r.Shape != Solicitation && r.Shape != Advertisement
}

// rule finds the rule's sets. The first set or network that must contain an address leads to the rule.
func (b *indexer) rule(r *Rule) indexedRule {
	i := indexedRule{Rule: r, class: classOf(r.Proto), pivot: -1}
	for _, m := range r.Sets {
		set := b.sets[m.Name]
		if m.By == DestinationPort {
			if set != nil && set.Kind != Ports {
				set = nil
			}
			i.ports = append(i.ports, portMatch{set, m.Not})
			continue
		}
		i.members = append(i.members, b.member(m, set))
	}
	for at, network := range [ends]netip.Prefix{r.Src, r.Dst} {
		if network.IsValid() {
			i.members = append(i.members, memberMatch{group: b.group(groupOf{network: network}, nil), end: end(at)})
		}
	}
	for n, m := range i.members {
		if !m.not {
			i.pivot = n
			break
		}
	}
	byAddress := len(i.members) == 0 || (len(i.members) == 1 && i.pivot == 0 && i.members[0].exact == nil)
	i.simple = byAddress && r.Track == "" && r.Shape != ToItself && r.In == "" && r.Out == "" && r.InPort == "" &&
		i.class != otherClass
	switch {
	case len(i.ports) > 0 || len(r.Ports) > 1:
	case len(r.Ports) == 1:
		i.onePort, i.first, i.last = true, r.Ports[0].First, r.Ports[0].Last
	default:
		i.onePort, i.last = true, lastPort
	}
	return i
}

// member returns the match that looks up an address in the set. Its group is none if the set is nil, or if sets of this
// kind can't contain the part m.By.
func (b *indexer) member(m SetMatch, set *Set) memberMatch {
	match := memberMatch{group: none, end: source, not: m.Not}
	if m.By == Destination || m.By == DestinationPair {
		match.end = destination
	}
	if set == nil {
		return match
	}
	switch {
	case (m.By == Source || m.By == Destination) && (set.Kind == Addresses || set.Kind == Networks):
	case m.By == SourceLink && set.Kind == AddressLinks:
		match.exact = set
	case (m.By == SourcePair || m.By == DestinationPair) && set.Kind == AddressPorts:
		match.exact = set
	default:
		return match
	}
	match.group = b.group(groupOf{set: set.Name}, set)
	return match
}

// group returns the number of the group with this key. It adds the group if there is none yet.
func (b *indexer) group(key groupOf, set *Set) int32 {
	n, ok := b.groups[key]
	if !ok {
		n = b.members.add(key.network, set)
		b.groups[key] = n
	}
	return n
}
