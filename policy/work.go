package policy

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
)

const (
	// sliceWork limits the work of one call of Engine.Slice. The unit is an entry of a set, for which the kernel needs up
	// to ten microseconds.
	sliceWork = 1 << 8
	// smallWork limits the work of one call of Engine.Small, in the unit of sliceWork.
	smallWork = 1 << 6
	// The constants ...PerWork say how many things count as one unit of work: crowds that are compared with a new
	// selector, peers and ports that are parsed (bulk), addresses that are looked at for a set (looks), demands that are
	// divided, sets that are dropped, and entries of crowd.matches that are checked for selectors no longer in use
	// (swept).
	crowdsPerWork, bulkPerWork, looksPerWork, dividedPerWork = 100, 2, 2, 16
	dropsPerWork, sweptPerWork                               = 20, 1000
	// dropsAtOnce is how many unneeded sets are dropped before the limit of work is checked again.
	dropsAtOnce = 1 << 8
	// free is the work that each compile may do even if the function over (work.over) returns true. So all work ends
	// after a number of compiles, and a small policy gets all its sets in one slice.
	free = 1 << 6
	// maxWaits is how many compiles in a row may leave work of a namespace undone before the waiting policies are
	// reported.
	maxWaits = 10_000
)

// work limits what one compile does for new sets. The next compile continues, and rules without their sets allow
// nothing until then. So expensive policies don't delay other changes. Counting sets and making sets have limits of
// their own, so neither delays the other.
type work struct {
	counting, making budget
	over             func() bool
	// small is true if sets are made only for those namespaces whose sets can all be completed in this compile.
	small bool
	done  map[string]float64
}

type budget struct{ limit, left float64 }

var unlimited = budget{math.Inf(1), math.Inf(1)}

func (w *work) begin(limit float64, small bool, over func() bool) {
	b := budget{limit, limit}
	w.counting, w.making, w.small, w.over = b, b, small, over
}

func (w *work) unlimited() bool { return math.IsInf(w.making.left, 1) }

func (w *work) allows(b *budget) bool {
	return b.left > 0 && (b.limit-b.left < free || w.over == nil || !w.over())
}

// spend adds the effort to the work done for the namespace. If this compile may do no more work, spend adds nothing and
// returns false. The last piece of work may exceed the limit. Without a limit, spend adds nothing and returns true.
func (w *work) spend(b *budget, namespace string, effort float64) bool {
	switch {
	case w.unlimited():
		return true
	case !w.allows(b):
		return false
	}
	b.left -= effort
	w.add(namespace, effort)
	return true
}

func (w *work) add(namespace string, effort float64) {
	if w.done == nil {
		w.done = map[string]float64{}
	}
	w.done[namespace] += effort
}

// order sorts the namespaces by the sum of their past and needed work. The smallest sum comes first.
func (w *work) order(sums map[string]float64) []string {
	return slices.SortedFunc(maps.Keys(sums), func(a, b string) int {
		return cmp.Or(cmp.Compare(sums[a], sums[b]), strings.Compare(a, b))
	})
}

func (c *compiler) waiting() bool {
	for _, p := range c.parts {
		if p.unfinished {
			return true
		}
	}
	return c.division.stale || c.division.running != nil
}

// makeSets decides which of the granted demands get their rules now. For the others, it makes as much of the missing
// sets as the limit of work allows.
func (c *compiler) makeSets() {
	sums := map[string]float64{}
	for namespace, p := range c.parts {
		if p.regranted {
			c.survey(p)
		}
		if len(p.pending) > 0 {
			sums[namespace] = p.due
		}
	}
	for _, namespace := range c.work.order(sums) {
		p := c.parts[namespace]
		if !c.work.small || p.due-c.work.done[namespace] <= c.work.making.left {
			c.makeSetsOf(p)
		}
		if len(p.pending) == 0 {
			p.waited = 0
			continue
		}
		p.unfinished = true
		if p.waited++; p.waited == maxWaits {
			p.changed = true
		}
	}
}

// survey finds out which granted demands have all their sets. It goes through all granted demands, so makeSets calls it
// only if the granted demands have changed.
func (c *compiler) survey(p *part) {
	before, needed := p.making, 0.0
	p.making, p.pending, p.placed, p.ready, p.changed, p.regranted = map[*supply]bool{}, nil, nil, 0, true, false
	for _, d := range p.granted {
		if d.ready = c.work.unlimited() || !slices.ContainsFunc(d.sets, (*supply).lacks); d.ready {
			p.placed = append(p.placed, d)
			continue
		}
		p.pending = append(p.pending, d)
		for _, s := range d.sets {
			if needed += s.needs(); s.makers > 0 {
				c.addMaker(p, s)
			}
		}
	}
	p.due = c.work.done[p.namespace] + needed
	c.abandon(before)
}

// makeSetsOf makes the sets of the part's pending demands, one demand after the other. Each new rule rewrites a chain,
// so the demands get their rules in groups. A group is at least as large as all groups before it together.
func (c *compiler) makeSetsOf(p *part) {
	for len(p.pending) > 0 {
		d := p.pending[0]
		if slices.ContainsFunc(d.sets, func(s *supply) bool { return !c.extend(p, s) }) {
			break
		}
		d.ready, p.pending = true, p.pending[1:]
		p.ready++
	}
	if p.ready == 0 || len(p.pending) > 0 && p.ready < len(p.placed) {
		return
	}
	p.placed, p.ready, p.changed = nil, 0, true
	for _, d := range p.granted {
		if d.ready {
			p.placed = append(p.placed, d)
		}
	}
	if len(p.pending) == 0 {
		c.abandon(p.making)
		p.making, p.pending = nil, nil
	}
}

// extend makes as much of the set as the work of this compile allows. It reports whether the ruleset has the whole
// set. If the part of another namespace has made the set, p becomes a maker of the set too. The ruleset then keeps the
// set when the other part no longer needs it.
func (c *compiler) extend(p *part, s *supply) (whole bool) {
	c.addMaker(p, s)
	for s.lacks() {
		if c.work.unlimited() {
			c.putPiece(s, math.MaxInt)
			return true
		}
		if !c.work.allows(&c.work.making) {
			return false
		}
		room := max(1, int(c.work.making.left))
		looked, found := c.find.look(s, looksPerWork*room)
		c.work.spend(&c.work.making, p.namespace, float64(looked)/looksPerWork)
		if found && (looked == 0 || c.work.allows(&c.work.making)) {
			had := s.piece.Len()
			c.putPiece(s, room)
			c.work.spend(&c.work.making, p.namespace, 1+float64(max(0, s.piece.Len()-had)))
		}
	}
	return true
}

func (c *compiler) putPiece(s *supply, more int) {
	all := c.entriesOf(s)
	n := all.UpTo(s.piece)
	if s.whole = more >= all.Len()-n; s.whole {
		more = all.Len() - n
	}
	s.piece = all.First(n + more)
	c.show(s, s.piece)
}

func (c *compiler) addMaker(p *part, s *supply) {
	if !p.making[s] {
		p.making[s] = true
		s.makers++
	}
}

func (c *compiler) abandon(sets map[*supply]bool) {
	for s := range sets {
		s.makers--
		c.drop(s)
	}
}

func (l *classifier) reportWait() {
	if l.waited < maxWaits {
		return
	}
	told := map[string]bool{}
	for _, d := range l.pending {
		if name := d.policy.name; !told[name] {
			told[name] = true
			l.to.problems.report(d.policy, d.peer.field, "its sets are large or many, and are not all made yet; "+
				"rules with missing sets allow nothing yet")
		}
	}
}
