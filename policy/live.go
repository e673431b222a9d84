package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// live is a selector or a named port for which the engine counts the matching addresses, and keeps the sets up to date.
type live struct {
	id       uint64
	selector // the zero value for a named port
	gone     bool
	scope    *scope
	// requirements has the podSelector's requirements, sorted by how many live selectors share each. The most shared
	// requirement comes first.
	requirements []*liveRequirement
	anchor       *requirement // the index has the selector under labels that meet this requirement; nil if there are none
	// print is the XOR of the marks of all matching crowds (pods of a namespace with equal labels). So selectors that
	// match the same crowds have the same print.
	print uint64
	port  namedPort
	count [len(conf.Families)]int    // number of matching pods' addresses that policies use (addressBook.uses), by family
	names [len(conf.Families)]string // names of the selector's sets in the ruleset, by family
	sets  [len(conf.Families)]liveSet
}

type liveSet struct {
	// filled is true once a compile has needed the entries. rest has the addresses that lookFor hasn't yet compared with
	// the selector or named port.
	filled  bool
	rest    []netip.Addr
	entries ruleset.Entries
}

type scope struct {
	key        string
	of         selector // the selector without its podSelector
	selectors  int      // how many live selectors have this scope
	unanchored []*live  // live selectors without anchors (see selectorIndex.anchored)
	asked
}

func (s *scope) matches(n *space) bool { return s.of.matchesNamespace(n.name, n.object) }

type selectorIndex struct {
	last   uint64 // the ID of the newest selector or named port
	byKey  map[string]*live
	byPort map[portKey]*portSets
	crowds map[portKey]map[*crowd]int
	round  uint64 // how often the method matching has been called
	// requirements has the requirements of all live selectors, by text.
	requirements map[string]*liveRequirement
	scopes       map[string]*scope
	// openScopes has the scopes that have a namespaceSelector and also selectors without anchors. These selectors aren't
	// in the map anchored, so they are compared with all crowds in the namespaces that the namespaceSelector matches.
	openScopes map[*scope]bool
	byPrint    map[uint64]*live
	// anchored has the selectors by anchor. An anchor is a label, or a label's key with any value. Each pod that a
	// selector matches has one of the selector's anchors. So a crowd is compared only with selectors that have an anchor
	// among the crowd's labels, and with selectors without anchors.
	anchored map[anchor][]*live
}

type portKey struct {
	name  string
	proto ruleset.Protocol
}

type portSets struct{ anywhere, local []*live }

func newSelectorIndex() selectorIndex {
	return selectorIndex{
		byKey: map[string]*live{}, byPort: map[portKey]*portSets{}, scopes: map[string]*scope{},
		openScopes: map[*scope]bool{}, anchored: map[anchor][]*live{}, crowds: map[portKey]map[*crowd]int{},
		byPrint: map[uint64]*live{}, requirements: map[string]*liveRequirement{},
	}
}

func (x *selectorIndex) id() uint64 {
	x.last++
	return x.last
}

func (x *selectorIndex) tellApart(name string, a, b Namespace) bool {
	for _, s := range x.scopes {
		if s.of.matchesNamespace(name, a) != s.of.matchesNamespace(name, b) {
			return true
		}
	}
	return false
}

func (x *selectorIndex) matching(c *crowd) (matches []*live) {
	x.round++
	consider := func(list []*live) {
		for _, l := range list {
			if x.meets(c, l.requirements) && x.in(l.scope, c) {
				matches = append(matches, l)
			}
		}
	}
	for k, v := range c.sample.Labels {
		consider(x.anchored[anchor{key: k, value: v}])
		consider(x.anchored[anchor{key: k, any: true}])
	}
	if own := x.scopes[ownScope(c.name)]; own != nil {
		consider(own.unanchored)
	}
	for s := range x.openScopes {
		if x.in(s, c) {
			consider(s.unanchored)
		}
	}
	slices.SortFunc(matches, byID)
	return matches
}

func (x *selectorIndex) in(s *scope, c *crowd) bool {
	if s.round != x.round {
		s.asked = asked{x.round, s.matches(c.space)}
	}
	return s.met
}

func ownScope(namespace string) string { return "namespace " + namespace }

func (x *selectorIndex) ports(p NamedPort, local bool) []*live {
	sets := x.byPort[portKey{p.Name, p.Proto}]
	switch {
	case sets == nil:
		return nil
	case local:
		return sets.local
	}
	return sets.anywhere
}

func (e *Engine) liveSelector(s selector) *live {
	x := &e.selectors
	if l := x.byKey[s.key]; l != nil {
		return l
	}
	l := &live{id: x.id(), selector: s}
	for f := range l.names {
		l.names[f] = conf.Family(f).Set(conf.SelectorSets + s.key)
	}
	x.byKey[s.key] = l
	l.scope = e.scopeOf(s)
	l.scope.selectors++
	l.requirements = x.share(s.pods)
	l.anchor = anchoring(s.pods, x.anchored)
	for _, a := range l.anchor.anchors() {
		x.anchored[a] = append(x.anchored[a], l)
	}
	if l.anchor == nil {
		l.scope.unanchored = append(l.scope.unanchored, l)
		if l.scope.of.namespaces != nil {
			x.openScopes[l.scope] = true
		}
	}
	for n := range e.within(l.scope) {
		for c := range n.each() {
			if c.sample.matchedBy(s.pods) == yes {
				l.print ^= c.mark
				c.matches = append(c.matches, l) // matches stays sorted, because the new ID is the highest
				for f := range c.count {
					l.count[f] += c.count[f]
				}
			}
		}
	}
	return l
}

func (e *Engine) scopeOf(s selector) *scope {
	key := ownScope(s.namespace)
	if s.namespaces != nil {
		key = "selector " + s.namespaces.String()
	}
	if known := e.selectors.scopes[key]; known != nil {
		return known
	}
	made := &scope{key: key, of: selector{namespace: s.namespace, namespaces: s.namespaces}}
	e.selectors.scopes[key] = made
	return made
}

func (e *Engine) within(s *scope) func(func(*space) bool) {
	return func(yield func(*space) bool) {
		if s.of.namespaces == nil {
			if n := e.spaces[s.of.namespace]; n != nil {
				yield(n)
			}
			return
		}
		for _, n := range e.spaces {
			if len(n.crowds) > 0 && s.matches(n) && !yield(n) {
				return
			}
		}
	}
}

func (x *selectorIndex) countPorts(c *crowd, p *Pod, by int) {
	for _, port := range p.Ports {
		key := portKey{port.Name, port.Proto}
		if x.crowds[key] == nil {
			x.crowds[key] = map[*crowd]int{}
		}
		if x.crowds[key][c] += by; x.crowds[key][c] == 0 {
			delete(x.crowds[key], c)
		}
		if len(x.crowds[key]) == 0 {
			delete(x.crowds, key)
		}
	}
}

func (e *Engine) livePort(p namedPort) *live {
	key := portKey{p.name, p.proto}
	sets := e.selectors.byPort[key]
	if sets == nil {
		sets = &portSets{}
		e.selectors.byPort[key] = sets
	}
	for _, l := range sets.local {
		if l.port == p {
			return l
		}
	}
	l := &live{id: e.selectors.id(), port: p}
	for f := range l.names {
		l.names[f] = namedPortSet(p, conf.Family(f))
	}
	sets.local = append(slices.Clip(sets.local), l)
	if !p.local {
		sets.anywhere = append(slices.Clip(sets.anywhere), l)
	}
	for p := range e.withPort(l) {
		for _, a := range p.addresses {
			if e.addresses.uses(p, a) {
				l.count[conf.FamilyOf(a)]++
			}
		}
	}
	return l
}

func (e *Engine) withPort(l *live) func(func(*pod) bool) {
	is := func(o NamedPort) bool { return o.Name == l.port.name && o.Proto == l.port.proto }
	has := func(p *pod) bool { return slices.ContainsFunc(p.Ports, is) }
	return func(yield func(*pod) bool) {
		if l.port.local {
			for name := range e.attached {
				for p := e.pods.Get(name); p != nil; p = p.next {
					if p.local && p.crowd != nil && has(p) && !yield(p) {
						return
					}
				}
			}
			return
		}
		for c := range e.selectors.crowds[portKey{l.port.name, l.port.proto}] {
			for _, p := range c.pods {
				if has(p) && !yield(p) {
					return
				}
			}
		}
	}
}

func (e *Engine) rematch(c *crowd, matches []*live) {
	for _, l := range c.matches {
		if _, in := slices.BinarySearchFunc(matches, l, byID); !in {
			e.recount(l, c, -1)
		}
	}
	for _, l := range matches {
		if _, in := slices.BinarySearchFunc(c.matches, l, byID); !in {
			e.recount(l, c, 1)
		}
	}
	c.matches = matches
}

func (e *Engine) recount(l *live, c *crowd, by int) {
	l.print ^= c.mark
	for f, n := range c.count {
		l.count[f] += by * n
	}
	e.moving.counts[l] = true
}
