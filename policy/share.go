package policy

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
)

// amount is a number of kernel rules, sets and set entries.
type amount struct{ rules, sets, entries float64 }

// plus returns the sum of the amounts.
func (a amount) plus(b amount) amount {
	return amount{a.rules + b.rules, a.sets + b.sets, a.entries + b.entries}
}

// within reports whether the amount fits into the room.
func (a amount) within(room amount) bool {
	return a.rules <= room.rules && a.sets <= room.sets && a.entries <= room.entries
}

// share returns the part of the room that the amount takes: the largest of three parts, those of the rules, of the sets
// and of the entries.
func (a amount) share(room amount) float64 {
	return max(a.rules/room.rules, a.sets/room.sets, a.entries/room.entries)
}

// nodeRoom returns the amount that all policies together may take on a node. Tests make it smaller.
var nodeRoom = func() amount { return amount{maxNodeRules, maxNodeSets, maxNodeEntries} }

// maxSetEntries is the highest number of entries of a set. Tests make it smaller.
var maxSetEntries = conf.MaxSetEntries

var noRoom = fmt.Sprintf("there is no room for it on this node: the policies of its pods "+
	"would be more than %d rules of the kernel's, "+
	"%d sets, or %d addresses, networks and ports in them, and this namespace has used its equal share; it allows nothing",
	maxNodeRules, maxNodeSets, maxNodeEntries)

// tenant is a namespace with the demands of its policies on this node.
type tenant struct {
	*part
	demands    []*demand // the demands that are not decided yet
	granted    []*demand
	reports    complaints
	usage      amount  // the amount that its granted demands take
	afterwards float64 // its share of the node if the next demand is granted
}

// grant decides which demands are granted. It grants all demands if the node has room for them, except those that need
// a set which is too large for the kernel. It decides again only where the decision may be another one.
func (c *compiler) grant() {
	was := c.fit
	if c.fit = c.fits(); !c.fit {
		if c.undecided || was {
			c.divide()
		}
		c.undecided = false
		return
	}
	for _, p := range c.parts {
		if !p.fresh && !c.undecided && was {
			continue
		}
		t := tenant{part: p, reports: p.stated.then()}
		for _, d := range p.demands {
			if c.possible(&t, d) {
				t.granted = append(t.granted, d)
			}
		}
		t.decide()
	}
	c.undecided = false
}

// fits reports whether the node has room for all demands. It counts the entries of sets only as long as there is room.
func (c *compiler) fits() bool {
	room := nodeRoom()
	for s := range c.uncounted {
		if !c.wanted.within(room) {
			break
		}
		c.count(s)
	}
	return c.wanted.within(room)
}

// decide makes what the tenant was granted the decision for its part.
func (t *tenant) decide() {
	p := t.part
	same := slices.Equal(p.granted, t.granted) && slices.Equal(p.decided.all, t.reports.all)
	p.changed = p.changed || p.fresh || !same
	p.granted, p.decided, p.fresh = t.granted, t.reports, false
}

// divide grants demands if the node doesn't have room for all. It takes one demand at a time, from the namespace that
// would then have the smallest share of the node. A namespace's share is its share of the resource that it takes most
// of (dominant resource fairness). So a namespace that needs no more than an equal share gets all its demands, and
// other namespaces can take the room that this one doesn't need. Namespaces that use the same set share the set's cost.
// The result depends only on the demands, not on their order in time.
func (c *compiler) divide() {
	for _, s := range c.supplies {
		s.users = nil
	}
	var all []*tenant
	for _, p := range c.parts {
		all = append(all, &tenant{part: p, demands: p.demands, reports: p.stated.then()})
	}
	var taken amount
	queue := tenants(slices.DeleteFunc(slices.Clone(all), func(t *tenant) bool { return !c.next(t, taken) }))
	heap.Init(&queue)
	for len(queue) > 0 {
		t := queue[0]
		d, was := t.demands[0], t.afterwards
		going := c.next(t, taken) // the room and the sets' users may have changed since the last call
		if going && t.demands[0] == d && t.afterwards <= was {
			taken = taken.plus(t.take(d))
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

// possible reports whether the kernel can have the sets that the demand needs. It reports a problem if one of the sets
// is too large.
func (c *compiler) possible(t *tenant, d *demand) bool {
	for _, s := range d.sets {
		if why := c.count(s); why != "" {
			t.reports.report(d.policy, d.field(s), why)
			return false
		}
	}
	return true
}

// next moves the tenant to its next demand that fits into the room that is left, and reports whether there is such a
// demand. It reports a problem for each demand that it skips.
func (c *compiler) next(t *tenant, taken amount) bool {
	limit := nodeRoom()
	for ; len(t.demands) > 0; t.demands = t.demands[1:] {
		d := t.demands[0]
		whole, part := amount{rules: d.cost()}, amount{rules: d.cost()}
		for _, s := range d.sets {
			if len(s.users) == 0 {
				whole.sets++
			}
		}
		room := taken.plus(whole).within(limit) // without room, the sets need not be counted
		if room && !c.possible(t, d) {
			continue
		}
		for _, s := range d.sets {
			if len(s.users) == 0 {
				whole.entries += s.entries
			}
			if !slices.Contains(s.users, t) {
				part = part.plus(s.part(len(s.users) + 1))
			}
		}
		if room && taken.plus(whole).within(limit) {
			t.afterwards = t.usage.plus(part).share(limit)
			return true
		}
		t.reports.report(d.policy, d.peer.field, noRoom)
	}
	return false
}

// part returns the amount that the set counts for in each namespace, if the number of namespaces that use it is users.
func (s *supply) part(users int) amount {
	return amount{sets: 1 / float64(users), entries: s.entries / float64(users)}
}

// take adds the demand to the tenant's usage, and returns the amount that it takes on the node.
func (t *tenant) take(d *demand) amount {
	whole := amount{rules: d.cost()}
	t.usage.rules += whole.rules
	for _, s := range d.sets {
		if slices.Contains(s.users, t) {
			continue
		}
		if len(s.users) == 0 {
			whole = whole.plus(s.part(1))
		}
		s.users = append(s.users, t)
		part := s.part(len(s.users))
		for _, u := range s.users[:len(s.users)-1] { // the set now counts for less in the other namespaces
			before := s.part(len(s.users) - 1)
			u.usage.sets -= before.sets - part.sets
			u.usage.entries -= before.entries - part.entries
		}
		t.usage = t.usage.plus(part)
	}
	return whole
}

// tenants is a heap. Its first tenant has the smallest share with its next demand.
type tenants []*tenant

// Len implements heap.Interface.
func (q tenants) Len() int { return len(q) }

// Swap implements heap.Interface.
func (q tenants) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Less implements heap.Interface.
func (q tenants) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].afterwards, q[j].afterwards), cmp.Compare(q[i].namespace, q[j].namespace)) < 0
}

// Push implements heap.Interface.
func (q *tenants) Push(t any) { *q = append(*q, t.(*tenant)) }

// Pop implements heap.Interface.
func (q *tenants) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	*q = (*q)[:last]
	return t
}
