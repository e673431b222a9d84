package policy

import "slices"

func (e *Engine) dropUnwanted() {
	c := e.compiler
	for len(c.unwanted) > 0 && c.work.allows(&c.work.making) {
		some := c.unwanted[:min(len(c.unwanted), dropsAtOnce)]
		c.work.making.left -= float64(len(some)) / dropsPerWork
		e.dropSome(some)
		if c.unwanted = c.unwanted[len(some):]; len(c.unwanted) == 0 {
			c.unwanted = nil
		}
	}
	for len(e.unswept) > 0 && c.work.allows(&c.work.making) {
		last := len(e.unswept) - 1
		c.work.making.left -= float64(len(e.unswept[last].matches)) / sweptPerWork
		e.unswept[last].sweep()
		if e.unswept = e.unswept[:last]; last == 0 {
			e.unswept = nil
		}
	}
}

func (e *Engine) dropSome(unwanted []*supply) {
	x, scopes := &e.selectors, map[*scope]bool{}
	for _, s := range unwanted {
		l := x.of(s)
		if l == nil {
			continue
		}
		needed := false
		for f, name := range l.names {
			now := e.compiler.supplies[name]
			if needed = needed || now != nil; now == nil || now.inRules+now.makers == 0 {
				l.sets[f] = liveSet{}
			}
		}
		if needed {
			continue
		}
		l.gone = true
		delete(e.moving.counts, l)
		delete(e.moving.sets, l)
		if l.key == "" {
			x.dropPort(l)
			continue
		}
		delete(x.byKey, l.key)
		if x.byPrint[l.print] == l {
			delete(x.byPrint, l.print)
		}
		scopes[l.scope] = true
		l.scope.selectors--
		x.unshare(l.requirements)
		for _, a := range l.anchor.anchors() {
			if x.anchored[a] = slices.DeleteFunc(x.anchored[a], isGone); len(x.anchored[a]) == 0 {
				delete(x.anchored, a)
			}
		}
	}
	for s := range scopes {
		if s.unanchored = slices.DeleteFunc(s.unanchored, isGone); len(s.unanchored) == 0 {
			delete(x.openScopes, s)
		}
		for n := range e.within(s) {
			for c := range n.each() {
				if !c.unswept {
					c.unswept, e.unswept = true, append(e.unswept, c)
				}
			}
		}
		if s.selectors == 0 {
			delete(x.scopes, s.key)
		}
	}
}

func isGone(l *live) bool { return l.gone }

func (c *crowd) sweep() {
	if c.unswept = false; slices.ContainsFunc(c.matches, isGone) {
		c.matches = slices.DeleteFunc(slices.Clone(c.matches), isGone)
	}
}

func (x *selectorIndex) of(s *supply) *live {
	switch {
	case s.selector != nil:
		return x.byKey[s.selector.key]
	case s.port != nil && x.byPort[portKey{s.port.name, s.port.proto}] != nil:
		for _, l := range x.byPort[portKey{s.port.name, s.port.proto}].local {
			if l.port == *s.port {
				return l
			}
		}
	}
	return nil
}

func (x *selectorIndex) dropPort(l *live) {
	same := func(o *live) bool { return o == l }
	key := portKey{l.port.name, l.port.proto}
	sets := x.byPort[key]
	sets.anywhere = slices.DeleteFunc(slices.Clone(sets.anywhere), same)
	if sets.local = slices.DeleteFunc(slices.Clone(sets.local), same); len(sets.local) == 0 {
		delete(x.byPort, key)
	}
}
