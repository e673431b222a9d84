package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/ordered"
	"github.com/weir-net/weir/policy/ruleset"
)

// Compile returns the ruleset that the kernel should have for the state. It is the specification of what weir enforces:
// an Engine that has no set left to make, and no policy left to parse, returns the same ruleset.
func Compile(state State) ruleset.Ruleset { return usualLimits.compile(state) }

func (l limits) compile(state State) ruleset.Ruleset {
	policies, cluster := parseAll(state.Policies), index(state)
	c := newCompiler(cluster, l)
	c.refused = state.Refused
	c.setCommon(common{
		families:  familiesOf(state.Endpoints, newPlaces(state).nodes[state.Node], state.Strays6),
		endpoints: cluster.attachments(), networks: nodeNetworks(state.Nodes),
	})
	in := map[string]*local{}
	at := func(namespace string) *local {
		if in[namespace] == nil {
			in[namespace] = &local{namespace: namespace, policies: policies.in[namespace]}
		}
		return in[namespace]
	}
	for _, e := range cluster.endpoints {
		l := at(e.Pod.Namespace)
		l.endpoints = append(l.endpoints, e)
	}
	for _, p := range cluster.expected {
		l := at(p.Namespace)
		l.expected = append(l.expected, p)
	}
	for _, l := range in {
		c.replace(l)
	}
	r := c.compile()
	r.Problems = slices.Concat(state.Problems, policies.problems, cluster.problems(), r.Problems)
	return r
}

type finder interface {
	effort(s *supply) float64
	// look checks up to n more addresses, and adds the set's entries for each address that matches. For a named port,
	// these are one entry for each port number. looked is how many addresses it has checked. found is true if no address
	// is left to check.
	look(s *supply, n int) (looked int, found bool)
	countSelected(s selector, f conf.Family) int
	selected(s selector, f conf.Family) ruleset.Entries
	countNamed(p namedPort, f conf.Family) int
	named(p namedPort, f conf.Family) ruleset.Entries
}

type namedPort struct {
	name  string
	proto ruleset.Protocol
	local bool
}

// compiler compiles the ruleset of one node. The following methods tell the compiler what has changed. After that,
// the method compile computes only what depends on these changes:
//
//	replace      the pods or policies of a namespace have changed
//	resized      the size of a set has changed
//	setCommon    the rules and sets that belong to no policy have changed
//	setRefused   the parts that the kernel refuses have changed; compile then computes everything
type compiler struct {
	find      finder
	limits    limits
	refused   ruleset.Refused
	parts     map[string]*part // by namespace
	common    common
	supplies  map[string]*supply // sets that policies' rules need, by name
	wanted    amount             // what all demands need together, without the entries of the sets in uncounted
	fit       bool
	undecided bool
	division  division // used while the node doesn't have the capacity for all demands
	uncounted map[*supply]bool
	stamp     uint64    // number of the newest part (supply.stamp)
	unwanted  []*supply // sets that no demand needs any more, or that have left the ruleset; an Engine empties this list
	work      work

	dispatched  bool
	dispatchers sheet // chains and sets that lead packets to the classes, of all families
	classes     []ruleset.Class
	openClasses [len(sides)][len(conf.Families)]*openClass
	sets        ordered.List[string, ruleset.Set]
	chains      ordered.List[chainKey, ruleset.Chain]

	problems   []ruleset.Problem // all problems; out of date if restated is true
	restated   bool
	openStated bool // true if some of the problems are about pods that no policy isolates
}

func newCompiler(find finder, l limits) *compiler {
	return &compiler{
		find: find, limits: l, fit: true,
		parts: map[string]*part{}, supplies: map[string]*supply{}, uncounted: map[*supply]bool{},
		sets: ordered.NewList(func(s *ruleset.Set) string { return s.Name }, cmp.Compare[string]),
		work: work{counting: unlimited, making: unlimited},
		chains: ordered.NewList(
			func(c *ruleset.Chain) chainKey { return chainKey{c.Family, c.Name} },
			func(a, b chainKey) int { return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.name, b.name)) }),
	}
}

type chainKey struct {
	family conf.Family
	name   string
}

func (c *compiler) setCommon(now common) {
	if !slices.Equal(c.common.families, now.families) {
		c.replaceAll()
	}
	was := c.common
	c.common = now
	c.common.compile()
	c.sets.Replace(was.sets, c.common.sets)
	c.chains.Replace(was.chains, c.common.chains)
}

// setRefused tells the compiler which parts of rulesets the kernel refuses. The next compile computes everything.
func (c *compiler) setRefused(refused ruleset.Refused) {
	c.refused = refused
	c.replaceAll()
	for _, s := range c.supplies {
		if s.inRules > 0 {
			c.fill(s)
		}
	}
}

func (c *compiler) replaceAll() {
	for _, p := range c.parts {
		p.stale, p.asks = true, nil
	}
	c.dispatched, c.restated, c.openClasses = false, true, [len(sides)][len(conf.Families)]*openClass{}
}

func (c *compiler) replace(l *local) {
	was, had := c.parts[l.namespace], c.parts[l.namespace] != nil
	if !had {
		was = &part{}
	}
	if len(l.endpoints)+len(l.expected) > 0 {
		now := c.partOf(l)
		// The old values stay until grant, makeSets and classify replace them.
		now.classified, now.waited, now.making = was.classified, was.waited, was.making
		for _, d := range was.granted {
			if d.of == now {
				now.granted = append(now.granted, d)
			}
		}
		now.decided, now.regranted = now.stated, true
		c.parts[l.namespace] = now
		c.wanted.rules += now.rules
		c.exchangeWants(was, now)
	} else if had {
		delete(c.parts, l.namespace)
		c.exchange(was, classified{})
		c.abandon(was.making)
	}
	for i := range sides {
		if now := c.parts[l.namespace]; now == nil || !slices.EqualFunc(was.open[i], now.open[i], sameEndpoint) {
			c.openClasses[i] = [len(conf.Families)]*openClass{}
		}
	}
	c.wanted.rules -= was.rules
	if c.parts[l.namespace] == nil {
		c.stamp++
		c.exchangeWants(was, &part{})
	}
	c.undecided = c.undecided || !c.fit
}

// exchangeWants replaces the part "was" by the part "now" in the list supply.wanted of each set: the list of the
// parts that need the set. "now" is the newest part of a namespace, or an empty part if the namespace has no part
// any more.
func (c *compiler) exchangeWants(was, now *part) {
	for _, s := range was.wants {
		s.before = c.stamp
	}
	for _, s := range now.wants {
		if s.before != c.stamp {
			c.want(s, now)
		}
	}
	for _, s := range was.wants {
		if s.stamp == c.stamp {
			s.wanted[slices.Index(s.wanted, was)] = now
		} else {
			c.unwant(s, was)
		}
	}
}

func (c *compiler) compile() (r ruleset.Ruleset) {
	for _, p := range c.parts {
		if p.unfinished = false; p.stale {
			c.replace(p.local)
		}
	}
	c.grant()
	c.makeSets()
	c.classify()
	c.compileDispatch()
	r.Problems = c.problemsNow()
	r.Sets, r.Chains, r.Classes = c.sets.All(), c.chains.All(), c.classes
	return r
}

func (c *compiler) problemsNow() []ruleset.Problem {
	if !c.restated {
		return c.problems
	}
	c.problems, c.restated = nil, false
	for _, families := range c.openClasses {
		for _, o := range families {
			if o != nil {
				c.problems = append(c.problems, o.problems...)
			}
		}
	}
	c.openStated = len(c.problems) > 0
	for _, p := range c.parts {
		c.problems = append(c.problems, p.classified.problems.all...)
	}
	return c.problems
}

func entry(p netip.Prefix, comment string) ruleset.Entry {
	return ruleset.Entry{Element: ruleset.Element{Prefix: p}, Comment: comment}
}
