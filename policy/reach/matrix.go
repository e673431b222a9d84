package reach

import (
	"encoding/binary"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// Reach has the ports on which one party (a group of pods, or a region of addresses) reaches another party, by family.
// The ports are nil if one of the two parties has no address of the family.
type Reach [len(conf.Families)]*Ports

type cell [len(conf.Families)]int32

func (sp *space) reach(c cell) (r Reach) {
	for f, number := range c {
		if number >= 0 {
			ports := sp.ports(int(number))
			r[f] = &ports
		}
	}
	return r
}

type rules struct {
	list   []verdict.Terms
	number map[verdict.Terms]int
	ports  []bits
}

type side struct {
	closed bool
	either [][]int // for each isolated pod that may have the end's address: numbers of the rules of the pod's policies
}

// class has the ends (an end is a party in one family and one state) that no rule of a policy tells apart. It is not a
// class of the ruleset.
type class struct {
	end             partyEnd
	egress, ingress side
	peer            bits // numbers of the rules that allow the end as a peer
}

func (u *universe) matrix(state int) *Matrix {
	k := &classifier{universe: u, evaluator: u.evaluators[state], state: state}
	k.number = map[verdict.Terms]int{}
	m := &Matrix{Parties: slices.Clone(u.parties), space: u.space, classifier: k}
	sides := k.isolate(m.Parties)
	by := map[string]int{}
	var classOf [len(conf.Families)][]int // classOf[f][n]: the classifier's class in family f for class n of the matrix
	for i := range u.parties {
		var of [len(conf.Families)]int
		key := []byte(m.Parties[i].Kind) // the world has its own classes, because it doesn't reach itself
		for f := range conf.Families {
			of[f] = k.classOf(f, u.ends[i][state][f], sides[i][f])
			k.classOfParty[f] = append(k.classOfParty[f], of[f])
			key = binary.AppendVarint(key, int64(of[f]))
		}
		n, ok := by[string(key)]
		if !ok {
			n = len(m.members)
			by[string(key)] = n
			m.members = append(m.members, nil)
			for f := range conf.Families {
				classOf[f] = append(classOf[f], of[f])
			}
		}
		m.classes = append(m.classes, n)
		m.members[n] = append(m.members[n], i)
	}
	var between [len(conf.Families)][][]int
	for f := range conf.Families {
		between[f] = k.between(f)
	}
	m.between = make([][]cell, len(m.members))
	for i := range m.members {
		m.between[i] = make([]cell, len(m.members))
		for j := range m.members {
			for f := range conf.Families {
				m.between[i][j][f] = -1
				if a, b := classOf[f][i], classOf[f][j]; a >= 0 && b >= 0 {
					m.between[i][j][f] = int32(between[f][a][b])
				}
			}
		}
	}
	return m
}

// classifier divides the parties' ends in one state into classes: ends that no rule of a policy tells apart.
type classifier struct {
	*universe
	evaluator *verdict.Evaluator
	state     int
	rules
	classes      [len(conf.Families)][]class
	known        [len(conf.Families)]map[string]int
	classOfParty [len(conf.Families)][]int
}

type sides struct{ egress, ingress side }

func (k *classifier) isolate(parties []Party) [][len(conf.Families)]sides {
	all := make([][len(conf.Families)]sides, len(parties))
	for i := range parties {
		p := &parties[i]
		p.Ingress, p.Egress = nil, nil
		for f := range conf.Families {
			end := k.ends[i][k.state][f]
			if !end.known {
				continue
			}
			all[i][f].egress = k.side(k.evaluator.Isolation(ruleset.Egress, end.End), &p.Egress)
			all[i][f].ingress = k.side(k.evaluator.Isolation(ruleset.Ingress, end.End), &p.Ingress)
		}
		for _, names := range []*[]string{&p.Ingress, &p.Egress} {
			slices.Sort(*names)
			*names = slices.Compact(*names)
		}
	}
	for _, t := range k.list {
		ports := k.space.none()
		if !t.ByName() {
			ports = k.portsOf(t, verdict.End{})
		}
		k.ports = append(k.ports, ports)
	}
	return all
}

func (k *classifier) side(i verdict.Isolation, names *[]string) side {
	s := side{closed: i.Closed}
	for _, one := range i.Either {
		*names = append(*names, one.Policies...)
		list := []int{}
		for _, t := range one.Terms {
			n, ok := k.number[t]
			if !ok {
				n = len(k.list)
				k.number[t] = n
				k.list = append(k.list, t)
			}
			list = append(list, n)
		}
		s.either = append(s.either, list)
	}
	return s
}

func (k *classifier) portsOf(t verdict.Terms, dst verdict.End) bits {
	b := k.space.none()
	for i, a := range k.space.atoms {
		if t.Opens(a.proto, a.First, dst) {
			b.set(i)
		}
	}
	return b
}

func (k *classifier) classOf(f int, end partyEnd, s sides) int {
	if !end.known {
		return -1
	}
	c := class{end: end, egress: s.egress, ingress: s.ingress, peer: newBits(len(k.list))}
	var named []byte // the numbers of named ports: two ends with different numbers must not be in one class
	for i, t := range k.list {
		if t.Means(end.End) {
			c.peer.set(i)
		}
		if t.ByName() {
			named = append(named, k.portsOf(t, end.End).key()...)
		}
	}
	key := binary.AppendVarint(nil, int64(len(named)))
	key = append(append(key, named...), c.peer.key()...)
	for _, s := range []side{c.egress, c.ingress} {
		key = s.appendTo(key)
	}
	if k.known[f] == nil {
		k.known[f] = map[string]int{}
	}
	n, ok := k.known[f][string(key)]
	if !ok {
		n = len(k.classes[f])
		k.known[f][string(key)] = n
		k.classes[f] = append(k.classes[f], c)
	}
	return n
}

func (s side) appendTo(key []byte) []byte {
	key = binary.AppendVarint(key, int64(len(s.either)))
	if s.closed {
		key = append(key, 1)
	} else {
		key = append(key, 0)
	}
	for _, list := range s.either {
		key = binary.AppendVarint(key, int64(len(list)))
		for _, n := range list {
			key = binary.AppendVarint(key, int64(n))
		}
	}
	return key
}

func (k *classifier) between(f int) [][]int {
	classes := k.classes[f]
	all := make([][]int, len(classes))
	for i := range all {
		all[i] = make([]int, len(classes))
	}
	for j := range classes {
		dst := &classes[j]
		ports := slices.Clone(k.ports)
		for n, t := range k.list {
			if t.ByName() {
				ports[n] = k.portsOf(t, dst.end.End)
			}
		}
		for i := range classes {
			src := &classes[i]
			allowed := k.space.full()
			k.narrow(allowed, src.egress, dst, ports)
			k.narrow(allowed, dst.ingress, src, ports)
			all[i][j] = k.space.number(allowed)
		}
	}
	return all
}

func (k *classifier) narrow(allowed bits, s side, peer *class, ports []bits) {
	if s.closed {
		allowed.minus(k.space.full())
	}
	for _, list := range s.either {
		some := k.space.none()
		for _, n := range list {
			if peer.peer.has(n) {
				some.or(ports[n])
			}
		}
		allowed.and(some)
	}
}
