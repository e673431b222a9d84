package policy

import (
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Ruleset returns the ruleset for all objects and attachments that the engine has been given. Unchanged parts share
// their memory with the last ruleset.
func (e *Engine) Ruleset() ruleset.Ruleset { return e.compile(math.Inf(1), false, nil) }

// Slice returns the ruleset after a limited amount of work, or earlier if the function over returns true. The next call
// continues the work. Until the work is done, packets that need missing sets and rules are dropped. Slice doesn't parse
// large policies: see NextUnparsed.
func (e *Engine) Slice(over func() bool) ruleset.Ruleset { return e.compile(sliceWork, false, over) }

// Small is Slice without large work: it makes sets only for namespaces that need few new entries. So a change that
// needs no sets, or only small ones, never waits for large sets of other namespaces.
func (e *Engine) Small() ruleset.Ruleset { return e.compile(smallWork, true, nil) }

// compile stops work on new sets after the given amount of work. It stops earlier if the function over returns true,
// but not before the amount of work in the constant free is done.
func (e *Engine) compile(work float64, small bool, over func() bool) ruleset.Ruleset {
	if math.IsInf(work, 1) {
		e.parseAll()
	}
	if !e.HasSlice() {
		return e.ruleset
	}
	e.compiler.work.begin(work, small, over)
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
	if ruleset.SameProblems(restated, e.ruleset.Problems) && !e.reports.due() {
		e.ruleset.Problems = last
	} else {
		e.ruleset.Problems = slices.Concat(e.ruleset.Problems, e.reports.all())
		e.reports.changed, e.reports.ofPolicy = false, false
	}
	for namespace := range e.touched {
		e.forgetPolicies(namespace)
	}
	empty(&e.touched)
	e.dropUnwanted()
	if len(e.unparsed) == 0 && !e.compiler.waiting() {
		e.compiler.work.done = nil
	}
	e.common, e.stale = false, false
	return e.ruleset
}

// Changed reports whether Ruleset may return another ruleset than the last time.
func (e *Engine) Changed() bool { return e.HasSlice() || len(e.unparsed) > 0 }

// HasSlice reports whether Slice may return another ruleset than the last time. It first tells the compiler the changed
// sizes of sets, because a set's size can change which demands are granted.
func (e *Engine) HasSlice() bool {
	e.tellSizes()
	return e.stale || e.common || len(e.touched) > 0 || e.reports.due() || len(e.moving.sets) > 0 ||
		e.compiler.waiting() || len(e.compiler.unwanted)+len(e.unswept) > 0
}

func (e *Engine) tellSizes() {
	for l := range e.moving.counts {
		if l.gone {
			continue
		}
		for _, f := range conf.Families {
			e.stale = e.compiler.resized(l.names[f], l.count[f]) || e.stale
		}
	}
	empty(&e.moving.counts)
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
		families: familiesOf(endpoints, e.places.nodes[e.node], e.strays6), endpoints: endpoints, networks: e.networks,
	}
}

func (e *Engine) localNow(namespace string) *local {
	l := &local{namespace: namespace}
	for _, id := range slices.Sorted(maps.Keys(e.local[namespace])) {
		of := localEndpoint{Endpoint: e.endpoints[id], pods: e.podsOf(e.endpoints[id])}
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

// effort returns how much work it is to count the set's entries. The unit is the work for one entry of a set (see
// sliceWork).
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

func (e *Engine) selected(s selector, f conf.Family) ruleset.Entries {
	return e.entriesOf(e.liveSelector(s), f)
}

func (e *Engine) named(port namedPort, f conf.Family) ruleset.Entries {
	return e.entriesOf(e.livePort(port), f)
}

func (e *Engine) entriesOf(l *live, f conf.Family) ruleset.Entries {
	e.lookFor(l, f, math.MaxInt)
	return l.sets[f].entries
}

func (e *Engine) look(s *supply, n int) (looked int, found bool) {
	switch {
	case s.selector != nil:
		return e.lookFor(e.liveSelector(*s.selector), s.Family, n)
	case s.port != nil:
		return e.lookFor(e.livePort(*s.port), s.Family, n)
	}
	return 0, true
}

// lookFor looks at the next addresses of the set, up to n, and adds an entry for each address that matches. The first
// call lists the addresses of all matching pods as the addresses to look at. If another selector matches the same
// pods (see twin), the first call takes that selector's entries instead. From then on, the method change keeps the
// entries up to date. So an address gets an entry if it matches when lookFor looks at it, or when it begins to match
// later.
func (e *Engine) lookFor(l *live, f conf.Family, n int) (looked int, found bool) {
	set := &l.sets[f]
	first := !set.filled
	if first {
		set.filled = true
		if o := e.selectors.twin(l, f); o != nil {
			set.entries = o.sets[f].entries
			return 0, true
		}
		set.rest = e.addressesOf(l, f)
	}
	if n < len(set.rest) {
		// Entries are added faster if their addresses are neighbours. But sorting takes time too, so only the next part of
		// the addresses is sorted.
		part := (len(set.rest)-1)%sortedAtOnce + 1
		if first || part == sortedAtOnce {
			slices.SortFunc(set.rest[:part], netip.Addr.Compare)
		}
		n = min(n, part)
	}
	looked = min(n, len(set.rest))
	some := make([]ruleset.Entry, 0, looked)
	for _, a := range set.rest[:looked] {
		some = e.entriesAt(some, l, a)
	}
	set.entries = set.entries.WithAll(some...)
	if set.rest = set.rest[looked:]; len(set.rest) == 0 {
		set.rest = nil
	}
	return looked, set.rest == nil
}

const sortedAtOnce = 1 << 12

func (e *Engine) addressesOf(l *live, f conf.Family) (all []netip.Addr) {
	add := func(p *pod) {
		for _, a := range p.addresses {
			if conf.FamilyOf(a) == f {
				all = append(all, a)
			}
		}
	}
	if l.key == "" {
		for p := range e.withPort(l) {
			add(p)
		}
		return all
	}
	for n := range e.within(l.scope) {
		for c := range n.each() {
			if _, in := slices.BinarySearchFunc(c.matches, l, byID); in {
				for _, p := range c.pods {
					add(p)
				}
			}
		}
	}
	return all
}

func (e *Engine) entriesAt(to []ruleset.Entry, l *live, a netip.Addr) []ruleset.Entry {
	now := e.at(a)
	if _, in := slices.BinarySearchFunc(now.selectors, l, byID); in {
		to = append(to, entry(hostPrefix(a), comment(now.of)))
	}
	for _, at := range now.ports {
		if at.live == l {
			to = append(to, namedEntry(a, at.port, comment(now.of)))
		}
	}
	return to
}

// twin returns another selector that matches the same crowds (pods of a namespace with equal labels) and has complete
// entries of the family. It returns nil if it knows no such selector.
func (x *selectorIndex) twin(l *live, f conf.Family) *live {
	if l.key == "" { // a named port
		return nil
	}
	o := x.byPrint[l.print]
	if o != nil && o != l && o.print == l.print && o.count == l.count && x.byKey[o.key] == o && o.sets[f].filled {
		if o.sets[f].rest == nil {
			return o
		}
		return nil
	}
	if len(x.byPrint) > 2*len(x.byKey)+64 { // most prints in the map are out of date
		x.byPrint = map[uint64]*live{}
	}
	x.byPrint[l.print] = l
	return nil
}
