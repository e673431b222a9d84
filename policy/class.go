package policy

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type side struct {
	direction ruleset.Direction
	own       ruleset.Part // the packet's field with the isolated pod's address: source or destination
	peer      ruleset.Part // the packet's field with the peer's address: source or destination
	dispatch  string       // name of the chain that leads packets to class chains
	chains    string       // beginning of the names of class chains
	sets      string       // beginning of the names of class sets
}

var (
	egress = side{
		ruleset.Egress, ruleset.Source, ruleset.Destination,
		conf.EgressChain, conf.EgressClassChains, conf.EgressClasses,
	}
	ingress = side{
		ruleset.Ingress, ruleset.Destination, ruleset.Source,
		conf.IngressChain, conf.IngressClassChains, conf.IngressClasses,
	}
	sides = [...]*side{&egress, &ingress}
)

// classified has the classes of one namespace, with the sets that their rules use and the problems of their policies.
type classified struct {
	classes [len(sides)][len(conf.Families)][]class
	// open has the endpoints that only audited policies select, if the kernel refuses these endpoints' class. The
	// endpoints count as not isolated.
	open     [len(sides)][len(conf.Families)][]localEndpoint
	supplies []*supply // the sets of the demands in placed
	problems problemList
	// placed has the demands in part.placed (their rules and sets are in the ruleset), by policy and direction.
	placed map[askKey][]*demand
	// reusable has the classes that the next ruleset takes over if nothing changes for them. It is empty if the kernel
	// refuses any part of a ruleset.
	reusable map[classKey]reusableClass
}

type classKey struct {
	side     *side
	family   conf.Family
	policies string // the policies of the group's pods (group.key)
}

type reusableClass struct {
	class
	pods []localEndpoint
}

type class struct {
	ruleset.Class
	// policies is the sum of the numbers of policies in all alternatives. The rules of a class with a larger sum come
	// first.
	policies int
	key      string
	// set and chain are nil if the policies allow nothing, or if the kernel refuses the set.
	set   *ruleset.Set
	chain *ruleset.Chain
	enter ruleset.Rule // the rule that leads the pods' packets to the chain
	none  []ruleset.Entry
}

// isolates returns 1 if a policy isolates the pods, and 0 if all of their policies are only audited.
func (k *class) isolates() int { return min(len(k.Policies), 1) }

// classifier makes the classes of one namespace from its placed demands: the demands whose rules and sets are in
// the ruleset (part.placed).
type classifier struct {
	*compiler
	*part
	*side
	family conf.Family
	to     *classified
}

func (c *compiler) classify() {
	for _, p := range c.parts {
		if !p.changed {
			continue
		}
		p.changed = false
		l := classifier{compiler: c, part: p, to: &classified{
			problems: p.decided.clone(), placed: map[askKey][]*demand{}, reusable: map[classKey]reusableClass{},
		}}
		l.collect()
		l.reportWait()
		for _, l.family = range c.common.families {
			for i, s := range sides {
				l.side = s
				for _, g := range p.groups[i] {
					if k, ok := l.classOf(g); ok {
						l.to.classes[i][l.family] = append(l.to.classes[i][l.family], k)
					} else {
						l.to.open[i][l.family] = append(l.to.open[i][l.family], g.pods...)
					}
				}
			}
		}
		c.exchange(p, *l.to)
	}
}

// exchange replaces the classes of a part (of one namespace). It also replaces the sets and chains of these classes
// in the ruleset.
func (c *compiler) exchange(p *part, now classified) {
	was := p.classified
	p.classified, c.dispatched = now, false
	c.restated = c.restated || !slices.Equal(was.problems.all, now.problems.all)
	c.grantSets(was.supplies, now.supplies)
	for i := range sides {
		for f := range conf.Families {
			if len(was.open[i][f])+len(now.open[i][f]) > 0 {
				c.openClasses[i][f] = nil
			}
		}
	}
	before, after := was.chains(), now.chains()
	for chain, set := range before {
		if after[chain] == nil {
			c.sets.Remove(set)
			c.chains.Remove(chain)
		}
	}
	for chain, set := range after {
		if before[chain] == nil {
			c.sets.Put(set)
			c.chains.Put(chain)
		}
	}
}

func (l *classified) chains() map[*ruleset.Chain]*ruleset.Set {
	all := map[*ruleset.Chain]*ruleset.Set{}
	for _, families := range l.classes {
		for _, classes := range families {
			for _, k := range classes {
				if k.set != nil {
					all[k.chain] = k.set
				}
			}
		}
	}
	return all
}

// collect groups the placed demands (part.placed) by policy and direction. It also lists the sets of these demands,
// and reports the sets' entries that the kernel refuses.
func (l *classifier) collect() {
	seen := map[*supply]bool{}
	for _, d := range l.placed {
		k := askKey{d.policy.name, d.side.direction}
		l.to.placed[k] = append(l.to.placed[k], d)
		for _, s := range d.sets {
			if !seen[s] {
				seen[s] = true
				l.to.supplies = append(l.to.supplies, s)
			}
			if len(l.refused) > 0 {
				all := s.Set
				all.Entries = l.entriesOf(s)
				l.refused.Without(all, func(_ ruleset.Entry, why string) {
					l.to.problems.report(d.policy, d.field(s), refusedByKernel(why))
				})
			}
		}
	}
}

func (l *classifier) classRules(policies []*parsedPolicy) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, policy := range policies {
		for _, d := range l.to.placed[askKey{policy.name, l.direction}] {
			for _, r := range d.rules {
				if r.family == l.family {
					rules = append(rules, r.Rule)
				}
			}
		}
	}
	return rules
}

// classOf returns the class of a group: of pods with the same isolating policies. If nothing has changed for the
// group, it returns the class of the last ruleset. The last and the new ruleset then share the class's memory, and
// comparing its rules takes no time.
func (l *classifier) classOf(g *group) (k class, ok bool) {
	key := classKey{l.side, l.family, g.key}
	if was, has := l.classified.reusable[key]; has && len(l.refused) == 0 &&
		slices.EqualFunc(was.pods, g.pods, sameEndpoint) && !l.differ(g.policies) {
		l.to.reusable[key] = was
		return was.class, true
	}
	if k, ok = l.class(g); ok && len(l.refused) == 0 {
		l.to.reusable[key] = reusableClass{k, g.pods}
	}
	return k, ok
}

// differ reports whether the placed demands (part.placed) of one of the policies differ from those in the last ruleset.
func (l *classifier) differ(a alternatives) bool {
	for _, policies := range a {
		for _, policy := range policies {
			k := askKey{policy.name, l.direction}
			if !slices.Equal(l.to.placed[k], l.classified.placed[k]) {
				return true
			}
		}
	}
	return false
}

// class computes the class of the group's pods. If the policies allow nothing, or the kernel refuses the class set, it
// returns the class "none". ok is false if the policies are audited, and the kernel refuses the class set or an entry
// of this set.
func (l *classifier) class(g *group) (k class, ok bool) {
	if g.audited {
		return l.auditClass(g)
	}
	k = class{
		Class:    ruleset.Class{Direction: l.direction, Family: l.family, Policies: g.policies.all()},
		policies: g.policies.count(), key: g.key,
	}
	rules := l.agreedRules(g.policies)
	id := ruleset.Identity(g.key, rules)
	set := l.family.Set(l.side.sets + id)
	if len(rules) == 0 || !l.canBe(g, set) {
		k.Set, k.Chain = l.noneNames(l.family)
		k.none, k.Pods = l.members(g.pods, l.family, k.Set, &l.to.problems.all)
		return k, true
	}
	k.Set, k.Chain = set, l.side.chains+id
	l.fill(&k, g, dropRest(rules, k.Chain, "what none of the policies lets through"))
	k.enter.Comment = "weir: pods under " + strings.Join(k.Policies, ", ")
	return k, true
}

func (l *classifier) fill(k *class, g *group, rules []ruleset.Rule) {
	var entries []ruleset.Entry
	entries, k.Pods = l.members(g.pods, l.family, k.Set, &l.to.problems.all)
	k.chain = &ruleset.Chain{Family: l.family, Name: k.Chain, Rules: rules}
	k.set = l.classSet(l.family, k.Set, entries)
	k.enter = ruleset.Rule{Sets: []ruleset.SetMatch{{Name: k.Set, By: l.own}}, Action: ruleset.GoTo, To: k.Chain}
}

func (s *side) classSet(f conf.Family, name string, entries []ruleset.Entry) *ruleset.Set {
	return &ruleset.Set{
		Name: name, Kind: ruleset.Addresses, Family: f, Role: ruleset.Members, Dispatch: s.dispatch, Opens: true,
		Entries: ruleset.EntriesOf(entries...),
	}
}

func (s *side) noneNames(f conf.Family) (set, chain string) {
	return f.Set(s.sets + conf.NoneClass), s.chains + strings.ToUpper(conf.NoneClass)
}

// dropRest appends two rules, which log and drop all packets that reach the end of the chain.
func dropRest(rules []ruleset.Rule, chain, why string) []ruleset.Rule {
	return append(rules,
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Log, To: conf.LogPrefix + chain},
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Drop})
}

func (c *compiler) members(
	of []localEndpoint, f conf.Family, set string, problems *[]ruleset.Problem,
) (entries []ruleset.Entry, pods []string) {
	for _, e := range of {
		in := false
		for _, a := range e.of(f) {
			entry := entry(hostPrefix(a), e.Pod.String())
			refusal := ruleset.Refusal{Family: f, Set: set, Element: entry.Element}
			if why, refused := c.refused[refusal]; refused {
				*problems = append(*problems, ruleset.Problem{
					Object: "Pod " + e.Pod.String(), Field: "status.podIPs",
					Message: refusedByKernel(why) + "; the pod is closed",
				})
				continue
			}
			entries, in = append(entries, entry), true
		}
		if in {
			pods = append(pods, e.Pod.String())
		}
	}
	return entries, pods
}

func (l *classifier) canBe(g *group, set string) bool {
	why := l.refused.Set(l.family, "", set)
	if why == "" {
		return true
	}
	for _, list := range g.policies {
		for i := range list {
			l.to.problems.report(list[i], string(l.direction), refusedByKernel(why)+
				"; pods that exactly the same policies isolate are closed")
		}
	}
	return false
}

func refusedByKernel(why string) string { return "the kernel refuses " + why }
