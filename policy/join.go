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

type junction struct {
	*compiler
	*side
	sheet
	dispatch []ruleset.Rule // rules of the chain that leads packets to class chains, in order
	classes  []ruleset.Class
}

type opened struct {
	ruleset.Class
	set      *ruleset.Set
	problems []ruleset.Problem
}

// join adds the chains that lead packets to classes, and the classes that all namespaces share.
//
// The rules of classes with more policies come first. So when a policy is added, one transaction moves all of the
// policy's pods to their new classes at the same time.
func (c *compiler) join() {
	if c.joined {
		return
	}
	was := c.junction
	c.junction, c.classes, c.joined = sheet{}, nil, true
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
			if c.opened[i][f] == nil {
				c.opened[i][f] = c.openClass(i, f)
			}
			j := junction{compiler: c, side: s, sheet: sheet{family: f}}
			j.compile(isolated, c.opened[i][f])
			c.junction.sets = append(c.junction.sets, j.sheet.sets...)
			c.junction.chains = append(c.junction.chains, j.sheet.chains...)
			c.classes = append(c.classes, j.classes...)
		}
	}
	c.sets.Replace(was.sets, c.junction.sets)
	c.chains.Replace(was.chains, c.junction.chains)
}

func (j *junction) compile(isolated []*class, open *opened) {
	// A TCP packet from the middle of a connection must not create a connection-tracking entry. Otherwise a server
	// could revive a connection that was cut.
	j.dispatch = []ruleset.Rule{{
		Proto: ruleset.TCP, Track: ruleset.Midstream,
		Comment: "weir: a TCP connection begins with its first packet", Action: ruleset.GoTo, To: conf.MidstreamChain,
	}}
	var allowNothing []ruleset.Entry
	for _, k := range isolated {
		allowNothing = append(allowNothing, k.none...)
	}
	// If two attachments have one address, the first of the rules decides. So the strictest rule comes first, and rules of
	// classes under audited policies alone come last.
	j.none(allowNothing)
	for _, k := range isolated {
		if j.classes = append(j.classes, k.Class); k.set != nil {
			j.dispatch = append(j.dispatch, k.enter)
		}
	}
	j.add(open.set, ruleset.Rule{
		Action: ruleset.Return, Comment: fmt.Sprintf("weir: pods under no %s policy", j.direction),
	})
	j.classes = append(j.classes, open.Class)
	j.dispatch = append(j.dispatch, j.stranger())
	j.chain(j.side.dispatch, dropRest(j.dispatch, j.side.dispatch, "pods that were not judged yet")...)
}

func (j *junction) add(set *ruleset.Set, r ruleset.Rule) {
	j.sheet.sets = append(j.sheet.sets, set)
	r.Sets = []ruleset.SetMatch{{Name: set.Name, By: j.own}}
	j.dispatch = append(j.dispatch, r)
}

// none adds the class "none" even if it has no pods. So a new policy that denies everything only changes sets, which is
// quicker than changing rules.
func (j *junction) none(pods []ruleset.Entry) {
	set, chain := j.noneNames(j.family)
	j.chain(chain, dropRest(nil, chain, "their policies let nothing through")...)
	j.add(j.classSet(j.family, set, pods), ruleset.Rule{
		Action: ruleset.GoTo, To: chain, Comment: "weir: pods whose policies let nothing through",
	})
}

func (j *junction) stranger() ruleset.Rule {
	r := ruleset.Rule{
		Sets:   []ruleset.SetMatch{{Name: j.family.Set(conf.PodsSet), By: j.own, Not: true}},
		Action: ruleset.GoTo, To: conf.NoPodChain,
	}
	if j.direction == ruleset.Egress {
		r.In, r.Comment = conf.Bridge, "weir: from the bridge, but from no pod"
	} else {
		r.Out, r.Comment = conf.Bridge, "weir: to the bridge, but to no pod"
	}
	return r
}

func (c *compiler) openClass(side int, f conf.Family) *opened {
	s := sides[side]
	o := opened{Class: ruleset.Class{Direction: s.direction, Policies: []string{}, Set: f.Set(s.sets + conf.OpenClass)}}
	var pods []joined
	for _, p := range c.parts {
		pods = append(append(pods, p.open[side]...), p.classified.open[side][f]...)
	}
	slices.SortFunc(pods, func(a, b joined) int { return cmp.Compare(a.ID, b.ID) })
	var entries []ruleset.Entry
	entries, o.Pods = c.members(pods, f, o.Set, &o.problems)
	c.restated = c.restated || len(o.problems) > 0 || c.openStated
	o.set = s.classSet(f, o.Set, entries)
	return &o
}
