package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Ruleset returns the ruleset for all that the engine was told. Parts that are as they were before share their memory
// with the last ruleset.
func (e *Engine) Ruleset() ruleset.Ruleset {
	if !e.Changed() {
		return e.ruleset
	}
	// An entry that the kernel refuses isn't put into its set, and is reported: compile sees to that.
	e.stale = e.stale || len(e.moving.sets) > 0 && len(e.refused) > 0
	switch {
	case e.stale:
		e.recompile()
	case len(e.moving.sets) > 0:
		e.compiled.Sets = e.refill()
	}
	empty(&e.moving.sets)
	e.stale, e.reports.changed = false, false
	e.ruleset = e.compiled.Ruleset
	e.ruleset.Problems = slices.Concat(e.reports.all(), e.compiled.Problems)
	return e.ruleset
}

// Changed reports whether Ruleset would return another ruleset than the last time.
func (e *Engine) Changed() bool {
	for l := range e.moving.counts {
		e.stale = e.stale || e.outgrown(l)
	}
	empty(&e.moving.counts)
	return e.stale || e.reports.changed || len(e.moving.sets) > 0
}

// recompile compiles the node's rules.
func (e *Engine) recompile() {
	e.round++
	in := input{
		policies: e.policiesIn, find: e, refused: e.refused, networks: e.networks,
		families: familiesOf(slices.Collect(maps.Values(e.endpoints)), e.places.nodes[e.node]),
	}
	for _, id := range slices.Sorted(maps.Keys(e.endpoints)) {
		of := joined{Endpoint: e.endpoints[id], pods: e.podsOf(e.endpoints[id])}
		of.known = len(of.pods) > 0 || of.Enforcement == conf.Off
		in.endpoints = append(in.endpoints, of)
	}
	for p := range e.expected {
		in.expected = append(in.expected, p.Pod)
	}
	e.compiled = compile(in)
	e.dropUnused()
}

// refill returns the sets of the last compile with the entries as they are now.
func (e *Engine) refill() []ruleset.Set {
	sets := slices.Clone(e.compiled.Sets)
	for l := range e.moving.sets {
		for _, f := range conf.Families {
			i, ok := slices.BinarySearchFunc(sets, l.setName(f), func(s ruleset.Set, name string) int {
				return cmp.Compare(s.Name, name)
			})
			if ok {
				sets[i].Entries = l.sets[f].entries
			}
		}
	}
	return sets
}

// outgrown reports whether a compile would decide otherwise, because one of the selector's sets has another size now.
// While everything fits into the node's room, no size matters.
func (e *Engine) outgrown(l *live) bool {
	for f := range l.sets {
		s := &l.sets[f]
		was, now := s.seen, l.count[f]
		if s.asked != e.round || was == now {
			continue
		}
		if was > maxSetEntries || now > maxSetEntries { // the problem's message has the number
			return true
		}
		by := roughly(now) - roughly(was)
		if e.compiled.entries += float64(by); by != 0 && (!e.compiled.fit || e.compiled.entries > nodeRoom().entries) {
			return true
		}
		s.seen = now
	}
	return false
}

// setName returns the name of the family's set.
func (l *live) setName(f conf.Family) string {
	if l.key == "" {
		return namedPortSet(l.port, f)
	}
	return f.Set(conf.SelectorSets + ruleset.Hash(l.key))
}

// countSelected implements finder.
func (e *Engine) countSelected(s selector, f conf.Family) int { return e.ask(e.liveSelector(s), f) }

// countNamed implements finder.
func (e *Engine) countNamed(p namedPort, f conf.Family) int { return e.ask(e.livePort(p), f) }

// ask returns the count, and remembers that the compile has seen it.
func (e *Engine) ask(l *live, f conf.Family) int {
	l.sets[f].asked, l.sets[f].seen = e.round, l.count[f]
	return l.count[f]
}

// selected implements finder.
func (e *Engine) selected(s selector, f conf.Family) ruleset.Entries {
	l := e.liveSelector(s)
	set := &l.sets[f]
	if set.filled {
		return set.entries
	}
	var entries []ruleset.Entry
	for c := range l.crowds {
		for _, p := range c.pods {
			for _, a := range p.addresses {
				if conf.FamilyOf(a) != f {
					continue
				}
				now := e.at(a)
				if _, in := slices.BinarySearchFunc(now.selectors, l, byID); in {
					entries = append(entries, entry(hostPrefix(a), comment(now.of)))
				}
			}
		}
	}
	set.filled, set.entries = true, ruleset.EntriesOf(entries...)
	return set.entries
}

// named implements finder.
func (e *Engine) named(port namedPort, f conf.Family) ruleset.Entries {
	l := e.livePort(port)
	set := &l.sets[f]
	if set.filled {
		return set.entries
	}
	var entries []ruleset.Entry
	for p := range e.withPort(l) {
		for _, a := range p.addresses {
			if conf.FamilyOf(a) != f {
				continue
			}
			now := e.at(a)
			for _, at := range now.ports {
				if at.live == l {
					entries = append(entries, namedEntry(a, at.port, comment(now.of)))
				}
			}
		}
	}
	set.filled, set.entries = true, ruleset.EntriesOf(entries...)
	return set.entries
}
