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

// side holds the values that differ between the directions.
type side struct {
	direction ruleset.Direction
	own       ruleset.Part // the part of a packet that has the address of the isolated pod
	peer      ruleset.Part // the part of a packet that has the peer's address
	dispatch  string       // the chain that sends a packet to its class
	chains    string       // the prefix of the names of class chains
	sets      string       // the prefix of the names of class sets
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

// group is the pods of a class, in both families.
type group struct {
	key      string
	policies alternatives
	pods     []joined
}

// groups returns the endpoints, grouped by the policies that isolate them. The last group has the endpoints that no
// policy isolates, or whose enforcement is off. Closed endpoints are in no group.
//
// Classes with more policies come first. A new policy moves its pods to classes that come earlier than the pods' old
// classes. A deleted policy's classes are deleted. In both cases all of the policy's pods change their class in the
// transaction that changes the rules.
func (c *compiler) groups(s side) []*group {
	byPolicies := map[string]*group{}
	at := func(isolating alternatives) *group {
		names := isolating.names()
		k := strings.Join(names, "\n") // no name contains a newline, and Join is quicker than key
		if byPolicies[k] == nil {
			byPolicies[k] = &group{key: key(names...), policies: isolating}
		}
		return byPolicies[k]
	}
	at(alternatives{nil}) // the class of pods that no policy isolates exists even if it is empty
	// The classes of expected pods exist too. So enrolling such a pod changes sets only, and ADD takes less time.
	for _, p := range c.expected {
		at(isolatingPolicies(s.direction, c.policies(p.Namespace), p))
	}
	for _, e := range c.endpoints {
		if !e.known { // the pod is closed: it is in no class
			continue
		}
		g := at(alternatives{nil})
		if e.Enforcement != conf.Off {
			g = at(isolatingPolicies(s.direction, c.policies(e.Pod.Namespace), e.pods...))
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
	dispatch []ruleset.Rule // the rules that send packets to class chains, in order
}

// classes adds the sets and chains of the side's classes, and the chain that sends packets to the class chains. All
// classes whose policies allow nothing share one set and one chain.
func (c *compiler) classes(s side, groups []*group) {
	k := classes{compiler: c, side: s}
	// A TCP packet in the middle of a connection must not begin a new entry in connection tracking. Otherwise a server
	// could revive a connection from its side after the client's side was cut or was never seen. Packets that are not
	// tracked (NOTRACK) belong to no connection, so the kernel checks each of them in both directions.
	k.dispatch = []ruleset.Rule{{
		Proto: ruleset.TCP, Track: ruleset.Midstream,
		Comment: "weir: a TCP connection begins with its first packet", Action: ruleset.Drop,
	}}
	isolated, notIsolated := groups[:len(groups)-1], groups[len(groups)-1]
	var allowNothing []ruleset.Entry
	for _, g := range isolated {
		allowNothing = append(allowNothing, k.isolated(g)...)
	}
	k.none(allowNothing)
	k.notIsolated(notIsolated)
	k.dispatch = append(k.dispatch, k.stranger())
	c.chain(s.dispatch, dropRest(k.dispatch, s.dispatch, "pods that were not judged yet")...)
}

// add adds the class set, and the rule that decides on packets of the pods in it.
func (k *classes) add(set string, entries []ruleset.Entry, r ruleset.Rule) {
	k.set(ruleset.Set{
		Name: set, Kind: ruleset.Addresses, Role: ruleset.Members, Dispatch: k.side.dispatch, Opens: true,
		Entries: ruleset.EntriesOf(entries...),
	})
	r.Sets = []ruleset.SetMatch{{Name: set, By: k.own}}
	k.dispatch = append(k.dispatch, r)
}

// isolated adds the class of pods that policies isolate. If the policies allow nothing, it adds no set and no chain,
// and returns the pods' entries for the shared class "none".
func (k *classes) isolated(g *group) (allowNothing []ruleset.Entry) {
	class := ruleset.Class{Direction: k.direction, Policies: g.policies.all()}
	rules := k.agreedRules(k.side, g.policies)
	id := ruleset.Identity(g.key, rules)
	set := k.family.Set(k.side.sets + id)
	if len(rules) == 0 || !k.canBe(g, set) {
		class.Set, class.Chain = k.noneNames()
		allowNothing, class.Pods = k.members(g, class.Set)
		k.out.Classes = append(k.out.Classes, class)
		return allowNothing
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

// none adds the class "none". It has all pods that are isolated by policies which allow nothing. The class exists even
// if it is empty. So a new policy that denies everything changes only sets, not rules, and takes effect quickly.
func (k *classes) none(pods []ruleset.Entry) {
	set, chain := k.noneNames()
	k.chain(chain, dropRest(nil, chain, "their policies let nothing through")...)
	k.add(set, pods, ruleset.Rule{
		Action: ruleset.GoTo, To: chain, Comment: "weir: pods whose policies let nothing through",
	})
}

// stranger returns the rule that drops packets from the bridge that are from no pod, or packets to the bridge that are
// to no pod. Without it the log would have each of these packets.
func (k *classes) stranger() ruleset.Rule {
	r := ruleset.Rule{
		Sets:   []ruleset.SetMatch{{Name: k.family.Set(conf.PodsSet), By: k.own, Not: true}},
		Action: ruleset.Drop,
	}
	if k.direction == ruleset.Egress {
		r.In, r.Comment = conf.Bridge, "weir: from the bridge, but from no pod"
	} else {
		r.Out, r.Comment = conf.Bridge, "weir: to the bridge, but to no pod"
	}
	return r
}

// noneNames returns the names of the set and chain of the class "none".
func (k *classes) noneNames() (set, chain string) {
	return k.family.Set(k.side.sets + conf.NoneClass), k.chains + strings.ToUpper(conf.NoneClass)
}

// notIsolated adds the class of pods that no policy isolates, or whose enforcement is off.
func (k *classes) notIsolated(g *group) {
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

// dropRest returns the chain's rules, followed by two rules that log and drop all packets that no rule has matched.
func dropRest(rules []ruleset.Rule, chain, why string) []ruleset.Rule {
	return append(rules,
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Log, To: "weir drop " + chain},
		ruleset.Rule{Comment: "weir: " + why, Action: ruleset.Drop})
}

// members returns the group's addresses of the current family as entries of the set, and the names of their pods. It
// leaves out entries that the kernel refuses, and reports a problem for each.
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

// canBe reports whether the kernel accepts the class set. If it doesn't, canBe reports a problem for each of the
// class's policies: the ruleset then drops the packets that these policies allow.
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

// refusedByKernel returns the message of a problem for a value of ruleset.Refused.
func refusedByKernel(why string) string { return "the kernel refuses " + why }
