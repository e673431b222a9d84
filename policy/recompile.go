package policy

import (
	"maps"
	"math"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Ruleset returns the ruleset for all objects and attachments that the engine has been given. Unchanged parts share
// their memory with the last ruleset.
func (e *Engine) Ruleset() ruleset.Ruleset { return e.compile(math.Inf(1), nil) }

// Slice returns the ruleset after a limited amount of work, or earlier if the function over returns true. The next call
// continues the work. Until it is done, packets that need missing sets and rules are dropped. Slice doesn't parse large
// policies: see NextUnparsed.
func (e *Engine) Slice(over func() bool) ruleset.Ruleset { return e.compile(slice, over) }

// compile begins no work on new sets when the given amount of work is done, or when the function over returns true.
func (e *Engine) compile(work float64, over func() bool) ruleset.Ruleset {
	if math.IsInf(work, 1) {
		e.parseAll()
	}
	if !e.HasSlice() {
		return e.ruleset
	}
	e.compiler.work.begin(work, over)
	for namespace := range e.touched {
		if e.isLocal(namespace) {
			e.policiesIn(namespace)
		}
	}
	if math.IsInf(work, 1) {
		e.parseAll() // policies of namespaces that have only now got pods on this node
	}
	if e.common {
		e.compiler.setCommon(e.commonNow())
	}
	for namespace := range e.touched {
		e.compiler.replace(e.localNow(namespace))
	}
	for l := range e.moving.sets {
		for _, f := range conf.Families {
			e.compiler.refill(l.names[f])
		}
	}
	empty(&e.moving.sets)
	restated := e.compiler.problems
	last := e.ruleset.Problems
	e.ruleset = e.compiler.compile()
	if ruleset.SameProblems(restated, e.ruleset.Problems) && !e.reports.changed {
		e.ruleset.Problems = last
	} else {
		e.ruleset.Problems = slices.Concat(e.ruleset.Problems, e.reports.all())
	}
	for namespace := range e.touched {
		e.forgetPolicies(namespace)
	}
	empty(&e.touched)
	e.dropUnwanted()
	if len(e.unparsed) == 0 && !e.compiler.waiting() {
		e.compiler.work.done = nil
	}
	e.common, e.stale, e.reports.changed = false, false, false
	return e.ruleset
}

// Changed reports whether Ruleset may return another ruleset than the last time.
func (e *Engine) Changed() bool { return e.HasSlice() || len(e.unparsed) > 0 }

// HasSlice reports whether Slice may return another ruleset than the last time.
func (e *Engine) HasSlice() bool {
	for l := range e.moving.counts {
		if l.gone {
			continue
		}
		for _, f := range conf.Families {
			e.stale = e.compiler.resized(l.names[f], l.count[f]) || e.stale
		}
	}
	empty(&e.moving.counts)
	return e.stale || e.common || len(e.touched) > 0 || e.reports.changed || len(e.moving.sets) > 0 ||
		e.compiler.waiting() || len(e.compiler.unwanted)+len(e.unswept) > 0
}

func (e *Engine) isLocal(namespace string) bool {
	return len(e.local[namespace])+len(e.expected[namespace]) > 0
}

func (e *Engine) commonNow() common {
	endpoints := make([]Endpoint, 0, len(e.endpoints))
	for _, id := range slices.Sorted(maps.Keys(e.endpoints)) {
		endpoints = append(endpoints, e.endpoints[id])
	}
	return common{
		families: familiesOf(endpoints, e.places.nodes[e.node]), endpoints: endpoints, networks: e.networks,
	}
}

func (e *Engine) localNow(namespace string) *local {
	l := &local{namespace: namespace}
	for _, id := range slices.Sorted(maps.Keys(e.local[namespace])) {
		of := joined{Endpoint: e.endpoints[id], pods: e.podsOf(e.endpoints[id])}
		of.known = len(of.pods) > 0 || of.Enforcement == conf.Off
		l.endpoints = append(l.endpoints, of)
	}
	for p := range e.expected[namespace] {
		l.expected = append(l.expected, p.Pod)
	}
	if len(l.endpoints)+len(l.expected) > 0 {
		l.policies = e.policiesIn(namespace)
	}
	return l
}

// effort returns how much work it is to count the set's entries.
func (e *Engine) effort(s *supply) float64 {
	switch {
	case s.selector == nil:
		return 1
	case s.selector.namespaces == nil && e.spaces[s.selector.namespace] == nil:
		return 1
	case s.selector.namespaces == nil:
		return 1 + float64(len(e.spaces[s.selector.namespace].crowds))/crowdsPerWork
	}
	return 1 + float64(e.crowds)/crowdsPerWork
}

func (e *Engine) countSelected(s selector, f conf.Family) int { return e.liveSelector(s).count[f] }

func (e *Engine) countNamed(p namedPort, f conf.Family) int { return e.livePort(p).count[f] }

// selected returns the entries of the selector's set. The first call computes them, and settle keeps them up to date.
func (e *Engine) selected(s selector, f conf.Family) ruleset.Entries {
	l := e.liveSelector(s)
	set := &l.sets[f]
	if set.filled {
		return set.entries
	}
	set.filled = true
	if o := e.selectors.twin(l); o != nil && o.sets[f].filled {
		set.entries = o.sets[f].entries
		return set.entries
	}
	var entries []ruleset.Entry
	for n := range e.within(l.scope) {
		for c := range n.each() {
			if _, in := slices.BinarySearchFunc(c.matches, l, byID); in {
				entries = e.entries(entries, l, c, f)
			}
		}
	}
	set.entries = ruleset.EntriesOf(entries...)
	return set.entries
}

func (e *Engine) entries(to []ruleset.Entry, l *live, c *crowd, f conf.Family) []ruleset.Entry {
	for _, p := range c.pods {
		for _, a := range p.addresses {
			if conf.FamilyOf(a) != f {
				continue
			}
			now := e.at(a)
			if _, in := slices.BinarySearchFunc(now.selectors, l, byID); in {
				to = append(to, entry(hostPrefix(a), comment(now.of)))
			}
		}
	}
	return to
}

func (x *selectorIndex) twin(l *live) *live {
	o := x.byPrint[l.print]
	if o != nil && o != l && o.print == l.print && o.count == l.count && x.byKey[o.key] == o {
		return o
	}
	if len(x.byPrint) > 2*len(x.byKey)+64 { // most prints in the map are out of date
		x.byPrint = map[uint64]*live{}
	}
	x.byPrint[l.print] = l
	return nil
}

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
