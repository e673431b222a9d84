package ruleset

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
)

// Index evaluates packets with the same results as a Simulator, but in a time that hardly depends on the number of
// rules, sets and entries. Only one goroutine may use an Index, because it remembers what it has computed.
//
// Each address has a signature: the sets and networks that contain the address. In each chain, a signature leads to a
// row, which has the rules that may match, by protocol and port.
type Index struct {
	hooks   [len(conf.Families)][2]*indexedChain
	members members
}

type indexedChain struct {
	number int // the chain's number in the Index, from 0
	rules  []indexedRule
	pivots [ends]pivots
	// rest has the rules that don't require an address to be in a set or a network. They may match packets with any
	// addresses.
	rest *row
	rows [ends]map[*signature]*row
	// verdicts remembers verdicts that needed many comparisons. It is nil if the chain leads to other chains, or looks
	// up sources together with links or ports.
	verdicts map[verdictOf]Action
}

type verdictOf struct {
	Packet
	source   *signature
	toItself bool
}

type end uint8

const (
	source end = iota
	destination
	ends
)

// indexedRule is a rule in the form in which it is compared. The first fields decide on most packets, so that most
// comparisons read little memory.
type indexedRule struct {
	class       class
	simple      bool
	onePort     bool
	first, last uint16
	*Rule
	to      *indexedChain
	members []memberMatch // matches of addresses, from Rule.Sets, Rule.Src and Rule.Dst
	ports   []portMatch   // matches of ports, from Rule.Sets
	pivot   int
}

type memberMatch struct {
	group int32 // index in members.groups, or the constant none if no address can match
	end   end
	not   bool
	// exact is the set if its entries also have ports or links; otherwise nil.
	exact *Set
}

const none = -1

type portMatch struct {
	set *Set
	not bool
}

// class is a class of protocols, and not of pods. Only otherClass has several protocols, so for otherClass, a rule's
// protocol is compared too.
type class uint8

const (
	anyClass class = iota
	tcpClass
	udpClass
	sctpClass
	icmpClass
	icmpv6Class
	otherClass
	classes
)

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

// NewIndex returns an Index of the ruleset. The ruleset must not change while the Index is used.
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

type groupOf struct {
	set     string
	network netip.Prefix
}

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

func (r *Rule) decides() bool {
	switch r.Action {
	case Drop, Return, Jump, GoTo:
	default:
		return false
	}
	return (r.Track == "" || r.Track == Untranslated) && r.Shape != Solicitation && r.Shape != Advertisement
}

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

// member returns the match for the set. The match's group is none, which contains no address, if set is nil, or if sets
// of this kind can't contain the part m.By of a packet, such as an address in a Ports set.
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

func (b *indexer) group(key groupOf, set *Set) int32 {
	n, ok := b.groups[key]
	if !ok {
		n = b.members.add(key.network, set)
		b.groups[key] = n
	}
	return n
}
