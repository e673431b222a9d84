package policy

import (
	"fmt"
	"math"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// supply is a set that demands need. The compiler counts and fills a set only when needed, because both take time if
// there are many pods. The parts that use a set are namespaces (type part).
type supply struct {
	ruleset.Set
	selector *selector
	port     *namedPort
	blocks   ruleset.Entries
	numbers  []ruleset.PortRange

	counted bool
	size    int     // number of entries when the set was last counted
	entries float64 // size, rounded up; 0 if the set is too large
	why     string  // why the set can't exist, or ""
	wanted  []*part // parts with a demand for the set
	inRules int     // how many parts have rules with the set
	// makers is how many parts are making the set, but have no rules with it yet. piece has the entries that are made so
	// far. whole is true if piece has all entries. A set with rules has all its entries.
	makers  int
	piece   ruleset.Entries
	whole   bool
	tenants []*tenant // in a division of the capacity: the namespaces (tenants) with granted demands for the set
	sharing int       // how many of the namespaces that still count as modest (in the function modest) need the set
	modest  uint64    // number of the last division in which a modest namespace (see division) needed the set
	// stamp is the number of the newest part that needs the set. before is the number of the newest part that has replaced
	// a part that needed the set. With them, exchangeWants compares the sets of two parts without maps.
	stamp, before uint64
}

func (c *compiler) want(s *supply, p *part) {
	if len(s.wanted) == 0 {
		c.supplies[s.Name] = s
		c.wanted.sets++
		if c.wanted.entries += s.entries; !s.counted {
			c.uncounted[s] = true
		}
	}
	s.wanted = append(s.wanted, p)
}

func (c *compiler) unwant(s *supply, p *part) {
	i := slices.Index(s.wanted, p)
	if s.wanted = slices.Delete(s.wanted, i, i+1); len(s.wanted) > 0 {
		return
	}
	c.wanted.sets--
	c.wanted.entries -= s.entries
	delete(c.uncounted, s)
	delete(c.supplies, s.Name)
	c.unwanted = append(c.unwanted, s)
}

// count counts the set's entries if they aren't counted yet. why is the reason why the set can't exist, or "". ok is
// false if this compile may do no more work. A later compile then counts the entries.
func (c *compiler) count(p *part, s *supply) (why string, ok bool) {
	if s.counted {
		return s.why, true
	}
	if !c.work.spend(&c.work.counting, p.namespace, c.find.effort(s)) {
		p.unfinished = true
		return "", false
	}
	s.counted = true
	delete(c.uncounted, s)
	c.resize(s, c.sizeOf(s))
	c.wanted.entries += s.entries
	return s.why, true
}

func (c *compiler) sizeOf(s *supply) int {
	switch {
	case s.selector != nil:
		return c.find.countSelected(*s.selector, s.Family)
	case s.port != nil:
		return c.find.countNamed(*s.port, s.Family)
	case s.numbers != nil:
		return count(s.numbers)
	}
	return s.blocks.Len()
}

func (c *compiler) resize(s *supply, n int) {
	if s.size, s.entries, s.why = n, float64(roughly(n)), ""; n > c.limits.setEntries {
		s.entries = 0
		s.why = fmt.Sprintf("matches %d addresses, and a set can have %d; it allows nothing", n, c.limits.setEntries)
	}
}

// resized tells the compiler that the set now has n entries. It returns true if this may change which demands are
// granted.
func (c *compiler) resized(name string, n int) bool {
	s := c.supplies[name]
	if s == nil || !s.counted || s.size == n {
		return false
	}
	entries, why := s.entries, s.why
	c.resize(s, n)
	c.wanted.entries += s.entries - entries
	if s.why == why && (s.entries == entries || c.fit && c.wanted.within(c.limits.node)) {
		return false
	}
	c.undecided = true
	c.division.stale = c.division.stale || c.neededByGreedy(s, c.division)
	return true
}

func (c *compiler) entriesOf(s *supply) ruleset.Entries {
	switch {
	case s.selector != nil:
		return c.find.selected(*s.selector, s.Family)
	case s.port != nil:
		return c.find.named(*s.port, s.Family)
	case s.numbers != nil:
		return ruleset.EntriesOf(numbers(s.numbers)...)
	}
	return s.blocks
}

// lacks reports whether the ruleset lacks some of the set's entries.
func (s *supply) lacks() bool { return s.inRules == 0 && !s.whole }

// needs estimates the work for the entries that the ruleset lacks.
func (s *supply) needs() float64 {
	if !s.lacks() {
		return 0
	}
	return 1 + max(0, s.entries-float64(s.piece.Len()))
}

func (c *compiler) fill(s *supply) { c.show(s, c.entriesOf(s)) }

func (c *compiler) show(s *supply, entries ruleset.Entries) {
	s.Entries = entries
	s.Set = c.refused.Without(s.Set, func(ruleset.Entry, string) {})
	c.sets.Put(&s.Set)
}

// refill tells the compiler that the set's entries have changed.
func (c *compiler) refill(name string) {
	s := c.supplies[name]
	switch {
	case s == nil:
	case s.inRules > 0:
		if c.fill(s); len(c.refused) > 0 { // each part reports the refused entries of its sets
			for _, p := range s.wanted {
				p.changed = true
			}
		}
	case s.whole:
		c.putPiece(s, math.MaxInt)
	case s.piece.Len() > 0:
		c.putPiece(s, 0)
	}
}

// grantSets replaces the list of sets that the rules of a part use. A set that rules begin to use gets all its entries.
func (c *compiler) grantSets(was, now []*supply) {
	for _, s := range now {
		if s.inRules++; s.inRules == 1 {
			c.fill(s)
		}
	}
	for _, s := range was {
		if s.inRules--; s.inRules == 0 {
			// No rule uses the set any longer. If another part is making the set for its own rules, the set keeps all the
			// entries that it has in the ruleset.
			if s.makers > 0 {
				c.putPiece(s, math.MaxInt)
			}
			c.drop(s)
		}
	}
}

// drop removes the set from the ruleset if no part needs it any longer.
func (c *compiler) drop(s *supply) {
	if s.inRules+s.makers > 0 {
		return
	}
	c.sets.Remove(&s.Set)
	s.Entries, s.piece, s.whole = ruleset.Entries{}, ruleset.Entries{}, false
	c.unwanted = append(c.unwanted, s)
}
