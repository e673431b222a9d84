package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
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

var noCapacity = fmt.Sprintf("this node has no capacity for it: the policies of its pods would need more than %d "+
	"rules of the kernel, %d sets, or %d addresses, networks and ports in them, and this namespace has used its equal "+
	"share; it allows nothing", maxNodeRules, maxNodeSets, maxNodeEntries)

type tenant struct {
	*part
	demands    []*demand // demands that aren't decided yet
	granted    []*demand
	problems   problemList
	usage      amount  // how much the tenant's granted demands use
	afterwards float64 // the tenant's share of the node if the next demand is granted
	skipped    float64 // entries of sets that were counted in vain, because the node has no capacity for them
}

// grant decides which demands the ruleset gets. A demand is the rules and sets for one peer and group of ports. A
// demand is left out if one of its sets is too large, or if the entries of its sets aren't counted yet. If the node has
// the capacity for all other demands together, the ruleset gets them all. Otherwise divide decides.
func (c *compiler) grant() {
	was := c.fit
	if c.fit = c.fits(); !c.fit {
		if c.undecided || was {
			c.divide()
			c.undecided = c.uncertain()
		}
		c.divideLeft()
		return
	}
	for _, p := range c.parts {
		switch {
		case c.undecided || !was || p.undecided && !c.countsLater(p):
			c.grantAll(p)
		case p.undecided:
			p.unfinished = true
		}
	}
	c.undecided, c.division = false, division{number: c.division.number}
}

// countsLater reports whether a later compile, and not this one, counts the entries of the sets that the part p (one
// namespace) needs.
func (c *compiler) countsLater(p *part) bool { return c.work.small && !p.regranted }

// uncertain reports whether grant has left some sets uncounted.
func (c *compiler) uncertain() bool {
	for _, p := range c.parts {
		if p.unfinished {
			return true
		}
	}
	return false
}

func (c *compiler) fits() bool {
	room, waiting := c.limits.node, map[string]float64{}
	if !c.wanted.within(room) { // the counted sets alone exceed the capacity, so the others needn't be counted
		return false
	}
	for s := range c.uncounted {
		for _, p := range s.wanted {
			if !c.countsLater(p) {
				waiting[p.namespace]++
			}
		}
	}
	for namespace := range waiting {
		waiting[namespace] += c.work.done[namespace]
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
	t := tenant{part: p, problems: p.stated.clone()}
	for _, d := range p.demands {
		if possible, _ := c.possible(&t, d); possible {
			t.granted = append(t.granted, d)
		}
	}
	t.decide()
}

func (t *tenant) decide() {
	p := t.part
	same := slices.Equal(p.granted, t.granted) && slices.Equal(p.decided.all, t.problems.all)
	p.regranted = p.regranted || p.undecided || !same
	p.granted, p.decided, p.undecided = t.granted, t.problems, p.unfinished
}

// division says how the node's capacity is divided among namespaces. A modest namespace needs at most an equal share
// of the node. The other namespaces are greedy.
type division struct {
	number uint64         // the serial number of this division
	greedy map[*part]bool // the greedy namespaces: they divide the capacity in the field left
	left   amount         // the capacity that the modest namespaces leave
	modest []*supply      // sets of the modest namespaces
	stale  bool           // true if the greedy namespaces must divide the rest again
	// running is the division of the rest that has begun and isn't finished, or nil. compile finishes a division even if
	// much has changed since it began. Otherwise a namespace that changes all the time would delay the others.
	running *dividing
}

// divide decides which demands are granted if the node doesn't have the capacity for all.
//
// Modest namespaces need at most an equal share of the node, and all their demands are granted. The greedy namespaces
// divide the rest (divideLeft). The rest is rounded down, so that a change in a modest namespace rarely changes the
// rest.
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
				was.stale = was.stale || c.neededByGreedy(s, was)
			}
			s.modest, now.modest = now.number, append(now.modest, s)
			taken.sets++
			taken.entries += s.entries
		}
	}
	for _, s := range was.modest {
		was.stale = was.stale || s.modest != now.number && c.neededByGreedy(s, was)
	}
	now.left = c.limits.node.without(taken)
	for p := range modest {
		if p.undecided || c.undecided || was.greedy == nil || was.greedy[p] {
			c.grantAll(p)
		}
	}
	now.stale = was.stale || was.left != now.left || was.greedy == nil || !maps.Equal(was.greedy, now.greedy)
	now.running = was.running
	c.division = now
}

func (c *compiler) neededByGreedy(s *supply, in division) bool {
	return slices.ContainsFunc(s.wanted, func(p *part) bool { return in.greedy[p] })
}

func (a amount) without(taken amount) amount {
	left := func(room, taken float64) float64 {
		step := max(1, room/64)
		return max(0, room-math.Ceil(taken/step)*step)
	}
	return amount{left(a.rules, taken.rules), left(a.sets, taken.sets), left(a.entries, taken.entries)}
}

// modest returns the namespaces that need at most 1/n of the node's capacity, where n is the number of namespaces
// with demands. A set that k modest namespaces need is divided among them: each is charged 1/k of the set.
func (c *compiler) modest() map[*part]bool {
	room, n := c.limits.node, 0
	for _, p := range c.parts {
		if len(p.demands) > 0 {
			n++
		}
	}
	equal := 1 / float64(max(n, 1))
	modest := map[*part]bool{}
	for _, p := range c.parts {
		// A namespace with too many rules isn't modest, so its sets needn't be counted.
		if modest[p] = p.rules <= equal*room.rules; !modest[p] {
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

func (c *compiler) possible(t *tenant, d *demand) (possible, known bool) {
	for _, s := range d.sets {
		why, ok := c.count(t.part, s)
		if !ok {
			return false, false
		}
		if why != "" {
			t.problems.report(d.policy, d.field(s), why)
			return false, true
		}
	}
	return true, true
}
