package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// side is what differs between the directions.
type side struct {
	direction ruleset.Direction
	own       ruleset.Part // where the pod that policies isolate stands in a packet
	peer      ruleset.Part // where its peer stands
	dispatch  string       // the chain that sends a packet to its class
	chains    string       // the beginning of the names of the classes' chains
	sets      string       // the beginning of the names of the classes' sets
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
)

// group is the pods of a class, of both families.
type group struct {
	key      string
	policies alternatives
	pods     []joined
}

// groups returns the endpoints by the policies that isolate them. The last group is of those that no policy isolates.
//
// Classes with more policies come first. A policy that comes moves pods to classes further ahead, and one that goes
// takes its classes with it, so either way all its pods change class in the transaction that changes the rules.
func (c *compiler) groups(s side, policies map[string][]parsedPolicy) []*group {
	byPolicies := map[string]*group{}
	at := func(applied alternatives) *group {
		names := applied.names()
		k := strings.Join(names, "\n") // no name has one, and it is quicker than key, for every pod
		if byPolicies[k] == nil {
			byPolicies[k] = &group{key: key(names...), policies: applied}
		}
		return byPolicies[k]
	}
	at(alternatives{nil}) // this class is there even if it is empty
	// And so are the classes of pods that are still to come. ADD must not take long, so it is to change sets only.
	for _, p := range c.cluster.expected {
		at(applied(s.direction, policies[p.Namespace], p))
	}
	for _, e := range c.cluster.endpoints {
		if !e.known { // closed: in no class
			continue
		}
		g := at(alternatives{nil})
		if e.Enforcement != conf.Off {
			g = at(applied(s.direction, policies[e.Pod.Namespace], e.pods...))
		}
		g.pods = append(g.pods, e)
	}
	return slices.SortedFunc(maps.Values(byPolicies), func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.policies.count(), a.policies.count()), cmp.Compare(a.key, b.key))
	})
}

// classes compiles the classes of one direction, in the family that is being compiled.
type classes struct {
	*compiler
	side
	dispatch []ruleset.Rule // the rules that send packets to classes, in their order
}

// classes adds one set and one chain for each class of the side, and the chain that sends packets to them.
func (c *compiler) classes(s side, groups []*group) {
	k := classes{compiler: c, side: s}
	// What belongs to no connection that the kernel knows doesn't begin one by its looks alone: a server whose client's
	// side was forbidden and forgotten, or never seen, would open it again from its own. Packets that somebody has told
	// the kernel not to track open no connection, and none is ever established: each is checked, in both directions.
	k.dispatch = []ruleset.Rule{{
		Proto: ruleset.TCP, Track: ruleset.Midstream,
		Comment: "weir: a TCP connection begins with its first packet", Action: ruleset.Drop,
	}}
	isolated, open := groups[:len(groups)-1], groups[len(groups)-1]
	var closed []ruleset.Entry
	for _, g := range isolated {
		closed = append(closed, k.isolated(g)...)
	}
	k.none(closed)
	k.open(open)
	c.chain(s.dispatch, dropRest(k.dispatch, s.dispatch, "pods that were not judged yet")...)
}

// add makes the class's set. Packets of the pods in it are sent on by the rule.
func (k *classes) add(set string, entries []ruleset.Entry, r ruleset.Rule) {
	k.set(ruleset.Set{
		Name: set, Kind: ruleset.Addresses, Role: ruleset.Members, Dispatch: k.side.dispatch, Opens: true,
		Entries: entries,
	})
	r.Sets = []ruleset.SetMatch{{Name: set, By: k.own}}
	k.dispatch = append(k.dispatch, r)
}

// isolated adds the class of pods that policies isolate. Where the policies allow nothing, it adds none, and returns
// the pods for the class none.
func (k *classes) isolated(g *group) (closed []ruleset.Entry) {
	class := ruleset.Class{Direction: k.direction, Policies: g.policies.all()}
	rules := k.agreedRules(k.side, g.policies)
	id := ruleset.Identity(g.key, rules)
	set := k.family.Set(k.side.sets + id)
	if len(rules) == 0 || !k.canBe(g, set) {
		class.Set, class.Chain = k.noneNames()
		closed, class.Pods = k.members(g, class.Set)
		k.out.Classes = append(k.out.Classes, class)
		return closed
	}
	class.Set, class.Chain = set, k.chains+id
	var entries []ruleset.Entry
	entries, class.Pods = k.members(g, set)
	k.chain(class.Chain, dropRest(rules, class.Chain, "what none of the policies lets through")...)
	k.add(set, entries, ruleset.Rule{
		Action: ruleset.GoTo, To: class.Chain, Comment: "weir: pods under " + strings.Join(class.Policies, ", "),
	})
	k.out.Classes = append(k.out.Classes, class)
	return nil
}

// none adds the class that pods share whose policies allow nothing. It is there even if it is empty: so a policy that
// denies all, which people want to hold at once, changes sets and no rules.
func (k *classes) none(pods []ruleset.Entry) {
	set, chain := k.noneNames()
	k.chain(chain, dropRest(nil, chain, "their policies let nothing through")...)
	k.add(set, pods, ruleset.Rule{
		Action: ruleset.GoTo, To: chain, Comment: "weir: pods whose policies let nothing through",
	})
}

func (k *classes) noneNames() (set, chain string) {
	return k.family.Set(k.side.sets + conf.NoneClass), k.chains + strings.ToUpper(conf.NoneClass)
}

// open adds the class of pods that no policy isolates.
func (k *classes) open(g *group) {
	class := ruleset.Class{
		Direction: k.direction, Policies: []string{}, Set: k.family.Set(k.side.sets + conf.OpenClass),
	}
	var entries []ruleset.Entry
	entries, class.Pods = k.members(g, class.Set)
	k.add(class.Set, entries, ruleset.Rule{
		Action: ruleset.Return, Comment: fmt.Sprintf("weir: pods under no %s policy", k.direction),
	})
	k.out.Classes = append(k.out.Classes, class)
}

// dropRest returns the chain's rules with an end that logs and drops all packets that come so far.
func dropRest(rules []ruleset.Rule, chain, why string) []ruleset.Rule {
	return append(rules,
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Log, To: "weir drop " + chain},
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Drop})
}

// members returns the pods of the group as entries of the set, which is one of the family's, and their names.
func (c *compiler) members(g *group, set string) (entries []ruleset.Entry, pods []string) {
	for _, e := range g.pods {
		in := false
		for _, a := range e.of(c.family) {
			entry := entry(hostPrefix(a), e.Pod.String())
			refusal := ruleset.Refusal{Family: c.family, Set: set, Element: entry.Element}
			if why, refused := c.refused[refusal]; refused {
				c.out.Problems = append(c.out.Problems, ruleset.Problem{
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

// canBe reports whether the kernel takes the class's set. If not, it reports a problem of each of the class's
// policies: the ruleset then drops what they allow.
func (k *classes) canBe(g *group, set string) bool {
	why := k.refused.Set(k.family, "", set)
	if why == "" {
		return true
	}
	for _, policy := range slices.Concat(g.policies...) {
		k.report(policy, string(k.direction), refusedByKernel(why)+
			"; what the policy lets through is closed to pods that are under the same policies")
	}
	return false
}

// refusedByKernel says in a problem what a value of Refused says.
func refusedByKernel(why string) string { return "the kernel refuses " + why }
