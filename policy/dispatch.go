package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type sheet struct {
	family conf.Family
	sets   []*ruleset.Set
	chains []*ruleset.Chain
}

func (s *sheet) chain(name string, rules ...ruleset.Rule) {
	s.chains = append(s.chains, &ruleset.Chain{Family: s.family, Name: name, Rules: rules})
}

func (s *sheet) hook(h ruleset.Hook, name, comment string, rules ...[]ruleset.Rule) {
	s.chains = append(s.chains, &ruleset.Chain{
		Family: s.family, Name: name, Hook: h, Comment: comment, Rules: slices.Concat(rules...),
	})
}

func (s *sheet) set(set ruleset.Set) {
	set.Family = s.family
	s.sets = append(s.sets, &set)
}

type dispatcher struct {
	*compiler
	*side
	sheet
	dispatch []ruleset.Rule // rules of the chain that leads packets to class chains, in order
	classes  []ruleset.Class
}

type openClass struct {
	ruleset.Class
	set      *ruleset.Set
	problems []ruleset.Problem
}

// compileDispatch adds the chains that lead packets to classes, and the classes that all namespaces share.
//
// The rules of classes with more policies come first, because the first rule that matches a packet decides. Where a
// backend looks up all classes at once (iptables with numbers, nftables), the order decides only for two attachments
// with the same address. On a kernel without --map-set, each class has a set. If a policy is added there, a pod that it
// selects may be in the sets of its old and its new class at the same time. The rule of the new class then comes before
// the rule of the old class. So the transaction that adds the rules of the new classes moves all these pods at once.
func (c *compiler) compileDispatch() {
	if c.dispatched {
		return
	}
	was := c.dispatchers
	c.dispatchers, c.classes, c.dispatched = sheet{}, nil, true
	for _, f := range c.common.families {
		for i, s := range sides {
			var isolated []*class
			for _, p := range c.parts {
				classes := p.classified.classes[i][f]
				for j := range classes {
					isolated = append(isolated, &classes[j])
				}
			}
			slices.SortFunc(isolated, func(a, b *class) int {
				return cmp.Or(cmp.Compare(b.isolates(), a.isolates()), cmp.Compare(b.policies, a.policies),
					cmp.Compare(a.key, b.key))
			})
			if c.openClasses[i][f] == nil {
				c.openClasses[i][f] = c.makeOpenClass(i, f)
			}
			d := dispatcher{compiler: c, side: s, sheet: sheet{family: f}}
			d.compile(isolated, c.openClasses[i][f])
			c.dispatchers.sets = append(c.dispatchers.sets, d.sheet.sets...)
			c.dispatchers.chains = append(c.dispatchers.chains, d.sheet.chains...)
			c.classes = append(c.classes, d.classes...)
		}
	}
	c.sets.Replace(was.sets, c.dispatchers.sets)
	c.chains.Replace(was.chains, c.dispatchers.chains)
}

func (d *dispatcher) compile(isolated []*class, open *openClass) {
	// A TCP packet from the middle of a connection must not create a connection-tracking entry. Otherwise a server
	// could revive a connection that was cut.
	const common = 6 // rules of each dispatch chain: midstream, none, open, stranger, and two of dropRest
	d.dispatch = append(make([]ruleset.Rule, 0, common+len(isolated)), ruleset.Rule{
		Proto: ruleset.TCP, Track: ruleset.Midstream,
		Comment: "weir: a TCP connection begins with its first packet", Action: ruleset.GoTo, To: conf.MidstreamChain,
	})
	var allowNothing []ruleset.Entry
	for _, k := range isolated {
		allowNothing = append(allowNothing, k.none...)
	}
	// If two attachments have the same address, the first rule that matches decides. So the strictest rule comes first.
	// The rules of classes with only audited policies come last.
	d.none(allowNothing)
	for _, k := range isolated {
		if d.classes = append(d.classes, k.Class); k.set != nil {
			d.dispatch = append(d.dispatch, k.enter)
		}
	}
	d.add(open.set, ruleset.Rule{
		Action: ruleset.Return, Comment: fmt.Sprintf("weir: pods under no %s policy", d.direction),
	})
	d.classes = append(d.classes, open.Class)
	d.dispatch = append(d.dispatch, d.stranger())
	d.chain(d.side.dispatch, dropRest(d.dispatch, d.side.dispatch, "pods that were not judged yet")...)
}

func (d *dispatcher) add(set *ruleset.Set, r ruleset.Rule) {
	d.sheet.sets = append(d.sheet.sets, set)
	r.Sets = []ruleset.SetMatch{{Name: set.Name, By: d.own}}
	d.dispatch = append(d.dispatch, r)
}

// none adds the class "none" even if it has no pods. So a new policy that denies everything only changes sets, which is
// quicker than changing rules.
func (d *dispatcher) none(pods []ruleset.Entry) {
	set, chain := d.noneNames(d.family)
	d.chain(chain, dropRest(nil, chain, "their policies let nothing through")...)
	d.add(d.classSet(d.family, set, pods), ruleset.Rule{
		Action: ruleset.GoTo, To: chain, Comment: "weir: pods whose policies let nothing through",
	})
}

func (d *dispatcher) stranger() ruleset.Rule {
	r := ruleset.Rule{
		Sets:   []ruleset.SetMatch{{Name: d.family.Set(conf.PodsSet), By: d.own, Not: true}},
		Action: ruleset.GoTo, To: conf.NoPodChain,
	}
	if d.direction == ruleset.Egress {
		r.In, r.Comment = conf.Bridge, "weir: from the bridge, but from no pod"
	} else {
		r.Out, r.Comment = conf.Bridge, "weir: to the bridge, but to no pod"
	}
	return r
}

func (c *compiler) makeOpenClass(side int, f conf.Family) *openClass {
	s := sides[side]
	o := openClass{Class: ruleset.Class{
		Direction: s.direction, Family: f, Policies: []string{}, Set: f.Set(s.sets + conf.OpenClass),
	}}
	var pods []localEndpoint
	for _, p := range c.parts {
		pods = append(append(pods, p.open[side]...), p.classified.open[side][f]...)
	}
	slices.SortFunc(pods, func(a, b localEndpoint) int { return cmp.Compare(a.ID, b.ID) })
	var entries []ruleset.Entry
	entries, o.Pods = c.members(pods, f, o.Set, &o.problems)
	c.restated = c.restated || len(o.problems) > 0 || c.openStated
	o.set = s.classSet(f, o.Set, entries)
	return &o
}
