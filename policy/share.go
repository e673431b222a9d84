package policy

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/weir-net/weir/conf"
)

type amount struct{ rules, sets, entries float64 }

func (a amount) plus(b amount) amount {
	return amount{a.rules + b.rules, a.sets + b.sets, a.entries + b.entries}
}

func (a amount) within(room amount) bool {
	return a.rules <= room.rules && a.sets <= room.sets && a.entries <= room.entries
}

func (a amount) share(room amount) float64 {
	return max(a.rules/room.rules, a.sets/room.sets, a.entries/room.entries)
}

var nodeRoom = func() amount { return amount{maxNodeRules, maxNodeSets, maxNodeEntries} }

var maxSetEntries = conf.MaxSetEntries

var noRoom = fmt.Sprintf("there is no room for it on this node: the policies of its pods "+
	"would be more than %d rules of the kernel's, "+
	"%d sets, or %d addresses, networks and ports in them, and this namespace has used its equal share; it allows nothing",
	maxNodeRules, maxNodeSets, maxNodeEntries)

type tenant struct {
	*part
	demands    []*demand // demands that aren't decided yet
	granted    []*demand
	reports    complaints
	usage      amount  // how much its granted demands use
	afterwards float64 // its share of the node if the next demand is granted
	skipped    float64 // entries of counted sets for which there was no room
}

// grant grants all demands if the node has room for them. Otherwise divide decides. A demand is never granted if one of
// its sets is too large, or hasn't been counted yet.
func (c *compiler) grant() {
	was := c.fit
	if c.fit = c.fits(); !c.fit {
		if c.undecided || was {
			c.divide()
		}
		c.undecided = c.waiting()
		return
	}
	for _, p := range c.parts {
		if p.fresh || c.undecided || !was {
			c.grantAll(p)
		}
	}
	c.undecided, c.division = false, division{number: c.division.number}
}

func (c *compiler) fits() bool {
	room, waiting := nodeRoom(), map[string]float64{}
	if !c.wanted.within(room) { // the rest of the sets, which may be many, needn't be counted
		return false
	}
	for s := range c.uncounted {
		for _, p := range s.wanted {
			waiting[p.namespace]++
		}
	}
	for _, namespace := range c.work.order(waiting) {
		p := c.parts[namespace]
		for _, s := range p.wants {
			if !c.wanted.within(room) {
				return false
			}
			c.count(p, s)
		}
	}
	return c.wanted.within(room)
}

func (c *compiler) grantAll(p *part) {
	t := tenant{part: p, reports: p.stated.then()}
	for _, d := range p.demands {
		if possible, _ := c.possible(&t, d); possible {
			t.granted = append(t.granted, d)
		}
	}
	t.decide()
}

func (t *tenant) decide() {
	p := t.part
	same := slices.Equal(p.granted, t.granted) && slices.Equal(p.decided.all, t.reports.all)
	p.changed = p.changed || p.fresh || !same
	p.granted, p.decided, p.fresh = t.granted, t.reports, p.waits
}

type division struct {
	number uint64         // counts the divisions
	greedy map[*part]bool // namespaces that aren't modest: they divide the rest of the room
	left   amount         // the room that the modest namespaces leave
	modest []*supply      // sets of the modest namespaces
	stale  bool           // true if the greedy namespaces must divide the rest again
}

// divide decides which demands are granted if the node doesn't have room for all.
//
// Modest namespaces need at most an equal share of the node, and all their demands are granted. The greedy namespaces
// divide the rest (divideLeft). The rest is rounded down, so that a change of a modest namespace rarely changes it.
func (c *compiler) divide() {
	modest := c.modest()
	was := c.division
	now := division{number: was.number + 1, greedy: map[*part]bool{}}
	var taken amount
	for _, p := range c.parts {
		if !modest[p] {
			now.greedy[p] = true
			continue
		}
		taken.rules += p.rules
		for _, s := range p.wants {
			if s.modest == now.number {
				continue
			}
			if s.modest != was.number {
				was.stale = was.stale || c.isGreedy(s, was)
			}
			s.modest, now.modest = now.number, append(now.modest, s)
			taken.sets++
			taken.entries += s.entries
		}
	}
	for _, s := range was.modest {
		was.stale = was.stale || s.modest != now.number && c.isGreedy(s, was)
	}
	now.left = nodeRoom().without(taken)
	for p := range modest {
		if p.fresh || c.undecided || was.greedy == nil || was.greedy[p] {
			c.grantAll(p)
		}
	}
	c.division = now
	if was.stale || was.left != now.left || was.greedy == nil || !maps.Equal(was.greedy, now.greedy) {
		c.divideLeft()
	}
}

func (c *compiler) isGreedy(s *supply, in division) bool {
	return slices.ContainsFunc(s.wanted, func(p *part) bool { return in.greedy[p] })
}

func (a amount) without(taken amount) amount {
	left := func(room, taken float64) float64 {
		step := max(1, room/64)
		return max(0, room-math.Ceil(taken/step)*step)
	}
	return amount{left(a.rules, taken.rules), left(a.sets, taken.sets), left(a.entries, taken.entries)}
}

// modest returns the namespaces that need at most 1/n of the node, where n is the number of namespaces with demands. If
// k of these namespaces need the same set, 1/k of it counts for each.
func (c *compiler) modest() map[*part]bool {
	room, n := nodeRoom(), 0
	for _, p := range c.parts {
		if len(p.demands) > 0 {
			n++
		}
	}
	equal := 1 / float64(max(n, 1))
	modest := map[*part]bool{}
	for _, p := range c.parts {
		if modest[p] = p.rules <= equal*room.rules; !modest[p] { // its sets, which may be many, needn't be counted
			delete(modest, p)
			continue
		}
		for _, s := range p.wants {
			s.sharing = 0
		}
	}
	for p := range modest {
		for _, s := range p.wants {
			s.sharing++
		}
	}
	few := func(a, b *part) int { return cmp.Compare(len(a.wants), len(b.wants)) }
	for changed := true; changed; {
		changed = false
		for _, p := range slices.SortedFunc(maps.Keys(modest), few) { // namespaces with few sets come first
			if c.share(p, equal, room) <= equal {
				continue
			}
			changed = true
			delete(modest, p)
			for _, s := range p.wants {
				s.sharing--
			}
		}
	}
	return modest
}

func (c *compiler) share(p *part, enough float64, room amount) float64 {
	needs := amount{rules: p.rules}
	for _, s := range p.wants {
		needs.sets += 1 / float64(s.sharing)
	}
	for _, s := range p.wants {
		if needs.share(room) > enough {
			break
		}
		c.count(p, s)
		needs.entries += s.entries / float64(s.sharing)
	}
	return needs.share(room)
}

// divideLeft grants demands of the greedy namespaces one by one. The next demand is always granted to the namespace
// whose share would then be the smallest. A namespace's share is the largest of its shares of rules, sets and entries
// (dominant resource fairness).
func (c *compiler) divideLeft() {
	var all []*tenant
	for p := range c.division.greedy {
		all = append(all, &tenant{part: p, demands: p.demands, reports: p.stated.then()})
		for _, s := range p.wants {
			s.users = nil
		}
	}
	var taken amount
	queue := tenants(slices.DeleteFunc(slices.Clone(all), func(t *tenant) bool { return !c.next(t, taken) }))
	heap.Init(&queue)
	for len(queue) > 0 {
		t := queue[0]
		d, was := t.demands[0], t.afterwards
		going := c.next(t, taken) // the room, and which tenants use the sets, may have changed since the last call
		if going && t.demands[0] == d && t.afterwards <= was {
			taken = taken.plus(c.charge(t, d))
			t.granted = append(t.granted, d)
			t.demands = t.demands[1:]
			going = c.next(t, taken)
		}
		if going {
			heap.Fix(&queue, 0)
		} else {
			heap.Pop(&queue)
		}
	}
	for _, t := range all {
		t.decide()
	}
}

func (c *compiler) possible(t *tenant, d *demand) (possible, known bool) {
	for _, s := range d.sets {
		why, ok := c.count(t.part, s)
		if !ok {
			return false, false
		}
		if why != "" {
			t.reports.report(d.policy, d.field(s), why)
			return false, true
		}
	}
	return true, true
}

func (c *compiler) next(t *tenant, taken amount) bool {
	room, left := nodeRoom(), c.division.left
	for ; len(t.demands) > 0; t.demands = t.demands[1:] {
		d := t.demands[0]
		whole, part := amount{rules: d.cost()}, amount{rules: d.cost()}
		for _, s := range d.sets {
			if c.costs(s) {
				whole.sets++
			}
		}
		fits := taken.plus(whole).within(left) && t.skipped*float64(len(c.division.greedy)) <= room.entries
		if fits {
			switch possible, known := c.possible(t, d); {
			case !known: // the next compile divides again
				c.division.stale, t.demands = true, nil
				return false
			case !possible:
				continue
			}
		}
		for _, s := range d.sets {
			if c.costs(s) {
				whole.entries += s.entries
			}
			if s.modest != c.division.number && !slices.Contains(s.users, t) {
				part = part.plus(s.part(len(s.users) + 1))
			}
		}
		if fits && taken.plus(whole).within(left) {
			t.afterwards = t.usage.plus(part).share(room)
			return true
		}
		if fits {
			t.skipped += whole.entries
		}
		t.reports.report(d.policy, d.peer.field, noRoom)
	}
	return false
}

func (c *compiler) costs(s *supply) bool { return len(s.users) == 0 && s.modest != c.division.number }

func (s *supply) part(users int) amount {
	return amount{sets: 1 / float64(users), entries: s.entries / float64(users)}
}

func (c *compiler) charge(t *tenant, d *demand) amount {
	whole := amount{rules: d.cost()}
	t.usage.rules += whole.rules
	for _, s := range d.sets {
		if s.modest == c.division.number || slices.Contains(s.users, t) {
			continue
		}
		if len(s.users) == 0 {
			whole = whole.plus(s.part(1))
		}
		s.users = append(s.users, t)
		part := s.part(len(s.users))
		for _, u := range s.users[:len(s.users)-1] { // the other users' parts of this set become smaller
			before := s.part(len(s.users) - 1)
			u.usage.sets -= before.sets - part.sets
			u.usage.entries -= before.entries - part.entries
		}
		t.usage = t.usage.plus(part)
	}
	return whole
}

type tenants []*tenant

func (q tenants) Len() int { return len(q) }

func (q tenants) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q tenants) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].afterwards, q[j].afterwards), cmp.Compare(q[i].namespace, q[j].namespace)) < 0
}

func (q *tenants) Push(t any) { *q = append(*q, t.(*tenant)) }

func (q *tenants) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	*q = (*q)[:last]
	return t
}
