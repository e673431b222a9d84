package policy

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy/ruleset"
)

const (
	// slice limits the work of one Slice. The unit is an entry of a set, for which the kernel needs up to ten
	// microseconds.
	slice                               = 1 << 10
	crowdsPerWork                       = 200
	dropsPerWork, sweptPerWork, dropped = 20, 1000, 1 << 8
	bulkPerWork                         = 2
	// free is the work that each compile may do even if its time is over. So all work ends some time, and a small
	// policy gets all its sets in one slice.
	free = 1 << 6
	// maxWaits is how many compiles in a row may leave work of a namespace undone before the waiting policies are
	// reported.
	maxWaits = 10_000
)

// maxPiece is the size above which a set is made in pieces. It is a quarter of a slice, because a demand may have two
// sets in each family: next to a piece of one set, a slice must have room for the other sets.
var maxPiece = slice / 4

// work limits what one compile does for new sets. The next compile continues, and rules without their sets allow
// nothing until then. So expensive policies don't delay other changes.
type work struct {
	limit, left float64
	over        func() bool
	spent       bool // true if this compile has done some work
	done        map[string]float64
}

func (w *work) spend(namespace string, effort float64, any bool) bool {
	if math.IsInf(w.left, 1) {
		return true
	}
	if !w.allows() || !any && w.spent && effort > w.left {
		return false
	}
	w.left -= effort
	w.spent = true
	w.add(namespace, effort)
	return true
}

func (w *work) allows() bool {
	return w.left > 0 && (w.limit-w.left < free || w.over == nil || !w.over())
}

func (w *work) add(namespace string, effort float64) {
	if w.done == nil {
		w.done = map[string]float64{}
	}
	w.done[namespace] += effort
}

func (w *work) order(needed map[string]float64) []string {
	return slices.SortedFunc(maps.Keys(needed), func(a, b string) int {
		return cmp.Or(cmp.Compare(w.done[a]+needed[a], w.done[b]+needed[b]), strings.Compare(a, b))
	})
}

func (w *work) begin(limit float64, over func() bool) {
	w.limit, w.left, w.over, w.spent = limit, limit, over, false
}

func (c *compiler) waiting() bool {
	for _, p := range c.parts {
		if p.waits {
			return true
		}
	}
	return false
}

func (c *compiler) release() {
	needed := map[string]float64{}
	for namespace, p := range c.parts {
		if p.changed {
			needed[namespace] = 0
			for _, d := range p.granted {
				needed[namespace] += newEntries(d, nil)
			}
		}
	}
	for _, namespace := range c.work.order(needed) {
		p := c.parts[namespace]
		p.released = nil
		begun := p.begun
		p.begun = nil
		seen := map[*supply]bool{}
		for _, d := range p.granted {
			if !c.begin(p, d) {
				p.waits = true
				continue
			}
			if effort := newEntries(d, seen); effort > 0 && !c.work.spend(p.namespace, effort, false) {
				p.waits = true
				continue
			}
			for _, s := range d.sets {
				seen[s] = true
			}
			p.released = append(p.released, d)
		}
		if c.abandon(begun); !p.waits {
			c.abandon(p.begun)
			p.begun = nil
		}
		if p.waited++; !p.waits {
			p.waited = 0
		}
	}
}

func newEntries(d *demand, seen map[*supply]bool) (n float64) {
	for _, s := range d.sets {
		switch {
		case s.granting > 0 || seen[s]:
		// The set is begun, so its exact size is known, and the rounded one may never be reached.
		case s.source.Len() > 0:
			n += 1 + float64(s.source.Len()-s.Entries.Len())
		default:
			n += 1 + s.entries
		}
	}
	return n
}

func (c *compiler) begin(p *part, d *demand) (whole bool) {
	if whole = true; len(c.refused) > 0 {
		return true
	}
	for _, s := range d.sets {
		if s.granting > 0 || s.entries <= float64(maxPiece) || math.IsInf(c.work.left, 1) {
			continue
		}
		s.beginning++
		p.begun = append(p.begun, s)
		all := c.entriesOf(s)
		n := max(1, min(all.Len()-s.Entries.Len(), int(c.work.left)))
		if !c.work.spend(p.namespace, float64(n), true) {
			whole = false
			continue
		}
		s.Entries, s.source = s.Entries.Follow(s.source, all, n), all
		c.sets.Put(&s.Set)
		whole = whole && s.Entries.Len() == all.Len()
	}
	return whole
}

func (c *compiler) abandon(sets []*supply) {
	for _, s := range sets {
		if s.beginning--; s.beginning == 0 && s.granting == 0 {
			c.sets.Remove(&s.Set)
			s.source, s.Entries = ruleset.Entries{}, ruleset.Entries{}
			c.unwanted = append(c.unwanted, s)
		}
	}
}

func (l *lowering) reportWait() {
	if l.waited < maxWaits {
		return
	}
	released, told := map[*demand]bool{}, map[string]bool{}
	for _, d := range l.released {
		released[d] = true
	}
	for _, d := range l.demands {
		if name := d.policy.name; l.waits && !released[d] && !told[name] {
			told[name] = true
			l.to.problems.report(d.policy, d.peer.field, "its sets are large or many, and are not all made yet; "+
				"what is missing allows nothing yet")
		}
	}
}
