package policy

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
)

// amount is how much of a node's kernel something takes.
type amount struct{ rules, sets, entries float64 }

func (a amount) plus(b amount) amount {
	return amount{a.rules + b.rules, a.sets + b.sets, a.entries + b.entries}
}

// within says whether there is room for it.
func (a amount) within(room amount) bool {
	return a.rules <= room.rules && a.sets <= room.sets && a.entries <= room.entries
}

// share is the part of the room that it takes: of rules, sets or entries, whichever it takes most of.
func (a amount) share(room amount) float64 {
	return max(a.rules/room.rules, a.sets/room.sets, a.entries/room.entries)
}

// nodeRoom is what all policies together may take of a node.
func nodeRoom() amount { return amount{maxNodeRules, maxNodeSets, maxNodeEntries} }

var noRoom = fmt.Sprintf("there is no room for it on this node: the policies of its pods "+
	"would be more than %d rules of the kernel's, "+
	"%d sets, or %d addresses, networks and ports in them, and this namespace has used its equal share; it allows nothing",
	maxNodeRules, maxNodeSets, maxNodeEntries)

// tenant is a namespace with what its policies need on this node.
type tenant struct {
	namespace  string
	demands    []*demand // that aren't decided yet
	usage      amount
	afterwards float64 // its share of the node with the next demand
}

// grant decides which demands are met: all, if the node has room for them. Else each namespace in turn gets the next of
// its demands, always the one that takes the least of the node with it (max-min fairness of whichever resource it takes
// most of). So a namespace that needs no more than an equal part gets all of it, whatever others ask for, and what it
// doesn't need is there for the others. A set that several namespaces' rules go by is there once, and they share what
// it takes. The outcome depends on the demands alone, and not on which of them came first.
func (c *compiler) grant(demands []*demand) (granted []*demand) {
	if c.fits(demands) {
		for _, d := range demands {
			if c.possible(d) {
				granted = append(granted, d)
			}
		}
		return granted
	}
	by := map[string]*tenant{}
	var queue tenants
	for _, d := range demands {
		t := by[d.policy.namespace]
		if t == nil {
			t = &tenant{namespace: d.policy.namespace}
			by[t.namespace], queue = t, append(queue, t)
		}
		t.demands = append(t.demands, d)
	}
	var taken amount
	queue = slices.DeleteFunc(queue, func(t *tenant) bool { return !c.next(t, taken) })
	heap.Init(&queue)
	for len(queue) > 0 {
		t := queue[0]
		d, was := t.demands[0], t.afterwards
		going := c.next(t, taken) // others have taken room since it was looked at, or share a set
		if going && t.demands[0] == d && t.afterwards <= was {
			taken = taken.plus(t.take(d))
			granted = append(granted, d)
			t.demands = t.demands[1:]
			going = c.next(t, taken)
		}
		if going {
			heap.Fix(&queue, 0)
		} else {
			heap.Pop(&queue)
		}
	}
	return granted
}

// fits says whether the node has room for all demands. No more sets are filled for that than there is room for.
func (c *compiler) fits(demands []*demand) bool {
	var taken amount
	counted := map[*supply]bool{}
	for _, d := range demands {
		taken.rules += d.cost()
		for _, s := range d.sets {
			if counted[s] {
				continue
			}
			counted[s] = true
			if taken.sets++; taken.within(c.room) && s.look() == "" {
				taken.entries += s.entries
			}
		}
		if !taken.within(c.room) {
			return false
		}
	}
	return true
}

// possible says whether there can be the sets that the demand needs, and tells of one that can't be.
func (c *compiler) possible(d *demand) bool {
	for _, s := range d.sets {
		if why := s.look(); why != "" {
			c.report(d.policy, d.field(s), why)
			return false
		}
	}
	return true
}

// next looks for the tenant's next demand for which there is room beside what is taken, and tells of those that it
// passes over. It is false if there is none.
func (c *compiler) next(t *tenant, taken amount) bool {
	for ; len(t.demands) > 0; t.demands = t.demands[1:] {
		d := t.demands[0]
		whole, part := amount{rules: d.cost()}, amount{rules: d.cost()}
		for _, s := range d.sets {
			if len(s.users) == 0 {
				whole.sets++
			}
		}
		room := taken.plus(whole).within(c.room) // else nobody needs to know what is in the sets
		if room && !c.possible(d) {
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
		if room && taken.plus(whole).within(c.room) {
			t.afterwards = t.usage.plus(part).share(c.room)
			return true
		}
		c.report(d.policy, d.peer.field, noRoom)
	}
	return false
}

// part is what the set counts for in each of that many namespaces.
func (s *supply) part(users int) amount {
	return amount{sets: 1 / float64(users), entries: s.entries / float64(users)}
}

// take counts the demand as the tenant's, and returns what it takes of the node.
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
		for _, u := range s.users[:len(s.users)-1] { // they pay less from here on
			before := s.part(len(s.users) - 1)
			u.usage.sets -= before.sets - part.sets
			u.usage.entries -= before.entries - part.entries
		}
		t.usage = t.usage.plus(part)
	}
	return whole
}

// tenants is a heap.
type tenants []*tenant

func (q tenants) Len() int      { return len(q) }
func (q tenants) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
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
