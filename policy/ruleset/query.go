package ruleset

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
)

// Allows reports whether the packet passes the hook that checks it. If there is no chain at this hook, the packet
// passes.
func (x *Index) Allows(p Packet) bool {
	hooks := &x.hooks[conf.FamilyOf(p.Dst)]
	c := hooks[0]
	if p.Out == "" {
		c = hooks[1]
	}
	if c == nil {
		return true
	}
	q := query{Packet: p, class: classOf(p.Proto)}
	q.ends[source], q.ends[destination] = x.members.signature(p.Src), x.members.signature(p.Dst)
	return c.walk(&q) != Drop
}

type query struct {
	Packet
	class class
	ends  [ends]*signature
}

func (c *indexedChain) walk(q *query) Action {
	if c == nil {
		return Return
	}
	var room [usualLists][]int32
	lists, rules := room[:0], 0
	for at, s := range q.ends {
		for r := c.row(end(at), s); r != nil; r = r.above {
			list := r.candidates(c, q)
			lists, rules = append(lists, list), rules+len(list)
		}
	}
	list := c.rest.candidates(c, q)
	lists, rules = append(lists, list), rules+len(list)
	if rules <= many || c.verdicts == nil {
		return c.compare(q, lists)
	}
	key := verdictOf{q.Packet, q.ends[source], q.Src == q.Dst}
	key.Src = netip.Addr{}
	verdict, ok := c.verdicts[key]
	if !ok {
		verdict = c.compare(q, lists)
		c.verdicts[key] = verdict
	}
	return verdict
}

const (
	usualLists = 16
	many       = 32
)

func (c *indexedChain) compare(q *query, lists [][]int32) Action {
	for last := int32(-1); ; {
		first := 0
		for i := 1; i < len(lists); i++ {
			if len(lists[i]) > 0 && (len(lists[first]) == 0 || lists[i][0] < lists[first][0]) {
				first = i
			}
		}
		if len(lists[first]) == 0 {
			return Return
		}
		number := lists[first][0]
		lists[first] = lists[first][1:]
		r := &c.rules[number]
		if number == last || !r.matches(q) { // several networks of a set may lead to the same rule
			continue
		}
		last = number
		switch r.Action {
		case GoTo:
			return r.to.walk(q)
		case Jump:
			if r.to.walk(q) == Drop {
				return Drop
			}
		default:
			return r.Action
		}
	}
}

func (r *indexedRule) matches(q *query) bool {
	switch {
	case r.class != anyClass && r.class != q.class, r.onePort && (q.Port < r.first || q.Port > r.last):
		return false
	case !r.onePort && !r.matchesPort(q.Port):
		return false
	case r.simple:
		return true
	case r.Track != "" && q.Translated, r.Shape == ToItself && q.Src != q.Dst:
		return false
	case r.In != "" && r.In != q.In, r.Out != "" && r.Out != q.Out, r.InPort != "" && r.InPort != q.InPort:
		return false
	case r.class == otherClass && r.Proto != q.Proto:
		return false
	}
	for i := range r.members {
		if m := &r.members[i]; m.contains(q) == m.not {
			return false
		}
	}
	return true
}

func (r *indexedRule) matchesPort(port uint16) bool {
	found := len(r.Ports) == 0
	for i := 0; i < len(r.Ports) && !found; i++ {
		found = r.Ports[i].First <= port && port <= r.Ports[i].Last
	}
	for i := 0; i < len(r.ports) && found; i++ {
		set := r.ports[i].set
		found = (set != nil && set.has(Element{Port: port})) != r.ports[i].not
	}
	return found
}

func (m *memberMatch) contains(q *query) bool {
	switch {
	case !q.ends[m.end].in(m.group):
		return false
	case m.exact == nil:
		return true
	case m.exact.Kind == AddressLinks:
		return m.exact.hasLink(q.Src, q.In)
	}
	a := q.Dst
	if m.end == source {
		a = q.Src
	}
	return m.exact.has(Element{Prefix: netip.PrefixFrom(a, a.BitLen()), Proto: q.Proto, Port: q.Port})
}
