package policy

import (
	"cmp"
	"container/heap"
	"slices"
)

// dividing is a division of the remaining capacity among the greedy namespaces: those that need more than an equal
// share of the node (division.greedy). It may take several compiles.
type dividing struct {
	left  amount
	all   []*tenant
	begun int // index in all: the tenants before it have been put into the queue, or left out
	queue tenants
	taken amount
}

// divideLeft grants demands of the greedy namespaces one by one: of those that need more than an equal share of the
// node (division.greedy). The next demand is always granted to the namespace whose share would then be the
// smallest. A namespace's share is the largest of its shares of rules, sets and entries (dominant resource
// fairness). If this compile has done as much work as it may, the next compile continues. Until the division is
// finished, the namespaces keep what they were granted before.
func (c *compiler) divideLeft() {
	for !c.work.small && (c.division.stale || c.division.running != nil) {
		if c.division.running == nil {
			c.beginDividing()
		}
		if !c.goOnDividing(c.division.running) {
			return
		}
	}
}

func (c *compiler) beginDividing() {
	r := &dividing{left: c.division.left}
	for p := range c.division.greedy {
		r.all = append(r.all, &tenant{part: p, demands: p.demands, problems: p.stated.clone()})
		for _, s := range p.wants {
			s.tenants = nil
		}
	}
	c.division.running, c.division.stale = r, false
}

func (c *compiler) goOnDividing(r *dividing) (finished bool) {
	for ; r.begun < len(r.all); r.begun++ {
		going, known := c.next(r, r.all[r.begun])
		if !known {
			return false
		}
		if going {
			r.queue = append(r.queue, r.all[r.begun])
		}
	}
	heap.Init(&r.queue)
	for len(r.queue) > 0 {
		t := r.queue[0]
		d, was := t.demands[0], t.afterwards
		going, known := c.next(r, t) // the capacity, and which tenants use the sets, may have changed
		if going && t.demands[0] == d && t.afterwards <= was {
			r.taken = r.taken.plus(c.charge(t, d))
			t.granted = append(t.granted, d)
			t.demands = t.demands[1:]
			going, known = c.next(r, t)
		}
		switch {
		case !known:
			return false
		case going:
			heap.Fix(&r.queue, 0)
		default:
			heap.Pop(&r.queue)
		}
	}
	c.division.running = nil
	for _, t := range r.all {
		switch now := c.parts[t.namespace]; {
		case !c.division.greedy[now]:
		case now == t.part:
			t.decide()
			now.undecided = false
		default:
			// The namespace has a newer part, on which the next division decides. Until then, the newer part keeps
			// only demands that the present division has granted.
			now.keep(t.granted)
		}
	}
	return true
}

func (p *part) keep(granted []*demand) {
	kept := make(map[*demand]bool, len(granted))
	for _, d := range granted {
		kept[d] = true
	}
	p.granted = slices.DeleteFunc(slices.Clone(p.granted), func(d *demand) bool { return !kept[d] })
	p.regranted = true
}

// next reports whether the tenant (a namespace) has a next demand that fits. It also computes t.afterwards: the
// tenant's share of the node if this demand is granted. known is false if this compile reaches its limit of work
// before it finds the answer. The next call then continues.
func (c *compiler) next(r *dividing, t *tenant) (going, known bool) {
	room := c.limits.node
	if c.parts[t.namespace] != t.part { // the part is out of date: another division will decide on the new part's demands
		t.demands = nil
	}
	for ; len(t.demands) > 0; t.demands = t.demands[1:] {
		if !c.work.spend(&c.work.counting, t.namespace, 1./dividedPerWork) {
			return false, false
		}
		d := t.demands[0]
		whole, part := amount{rules: d.cost()}, amount{rules: d.cost()}
		for _, s := range d.sets {
			if c.costs(s) {
				whole.sets++
			}
		}
		fits := r.taken.plus(whole).within(r.left) && t.skipped*float64(len(r.all)) <= room.entries
		if fits {
			switch possible, known := c.possible(t, d); {
			case !known:
				return false, false
			case !possible:
				continue
			}
		}
		for _, s := range d.sets {
			if c.costs(s) {
				whole.entries += s.entries
			}
			if s.modest != c.division.number && !slices.Contains(s.tenants, t) {
				part = part.plus(s.part(len(s.tenants) + 1))
			}
		}
		if fits && r.taken.plus(whole).within(r.left) {
			t.afterwards = t.usage.plus(part).share(room)
			return true, true
		}
		if fits {
			t.skipped += whole.entries
		}
		t.problems.report(d.policy, d.peer.field, noCapacity)
	}
	return false, true
}

func (c *compiler) costs(s *supply) bool { return len(s.tenants) == 0 && s.modest != c.division.number }

func (s *supply) part(users int) amount {
	return amount{sets: 1 / float64(users), entries: s.entries / float64(users)}
}

func (c *compiler) charge(t *tenant, d *demand) amount {
	whole := amount{rules: d.cost()}
	t.usage.rules += whole.rules
	for _, s := range d.sets {
		if s.modest == c.division.number || slices.Contains(s.tenants, t) {
			continue
		}
		if len(s.tenants) == 0 {
			whole = whole.plus(s.part(1))
		}
		s.tenants = append(s.tenants, t)
		part := s.part(len(s.tenants))
		for _, u := range s.tenants[:len(s.tenants)-1] { // the other tenants are now charged a smaller fraction of this set
			before := s.part(len(s.tenants) - 1)
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
