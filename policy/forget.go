package policy

import "slices"

// dropUnwanted forgets the live selectors and named ports that no demand needs any more, and the entries of sets that
// are no longer in the ruleset.
func (e *Engine) dropUnwanted() {
	x, gone, scopes := &e.selectors, map[*live]bool{}, map[*scope]bool{}
	for _, s := range e.compiler.unwanted {
		l := x.of(s)
		if l == nil || gone[l] {
			continue
		}
		gone[l] = true
		for f, name := range l.names {
			now := e.compiler.supplies[name]
			if now != nil {
				gone[l] = false
			}
			if now == nil || now.granting == 0 {
				l.sets[f] = liveSet{}
			}
		}
		if !gone[l] {
			delete(gone, l)
			continue
		}
		delete(e.moving.counts, l)
		if l.key == "" {
			x.dropPort(l)
			continue
		}
		x.drop(l)
		if scopes[l.scope] = true; len(scopes) > 10 { // a look at all crowds takes less time
			scopes = map[*scope]bool{{of: selector{namespaces: &everything}}: true}
		}
	}
	e.compiler.unwanted = nil
	for s := range scopes {
		for n := range e.within(s) {
			for c := range n.each() {
				if slices.ContainsFunc(c.matches, func(l *live) bool { return gone[l] }) {
					c.matches = slices.DeleteFunc(slices.Clone(c.matches), func(l *live) bool { return gone[l] })
				}
			}
		}
	}
}

// of returns the live selector or named port of the supply; nil if there is none.
func (x *selectorIndex) of(s *supply) *live {
	switch {
	case s.selector != nil:
		return x.byKey[s.selector.key]
	case s.port != nil && x.byPort[portKey{s.port.name, s.port.proto}] != nil:
		for _, l := range x.byPort[portKey{s.port.name, s.port.proto}].here {
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
	if sets.here = slices.DeleteFunc(slices.Clone(sets.here), same); len(sets.here) == 0 {
		delete(x.byPort, key)
	}
}

// drop takes the selector out of the index. The crowds' lists still have it.
func (x *selectorIndex) drop(l *live) {
	same := func(o *live) bool { return o == l }
	if delete(x.byKey, l.key); x.byPrint[l.print] == l {
		delete(x.byPrint, l.print)
	}
	for _, a := range anchors(l.pods) {
		if x.anchored[a] = slices.DeleteFunc(x.anchored[a], same); len(x.anchored[a]) == 0 {
			delete(x.anchored, a)
		}
	}
	s := l.scope
	if s.unanchored = slices.DeleteFunc(s.unanchored, same); len(s.unanchored) == 0 {
		delete(x.open, s)
	}
	if s.selectors--; s.selectors == 0 {
		delete(x.scopes, s.key)
	}
}
