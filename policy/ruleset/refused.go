package ruleset

import (
	"fmt"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Refusal is a part of a ruleset that a node's kernel doesn't take, such as a match whose module it lacks. One of Kind,
// Rule, Type and Set is given.
type Refusal struct {
	Family conf.Family
	// Kind is what rules of policies have in common: Rule.Kinds.
	Kind string
	// Rule is one rule of a policy's, as iptables-save prints it without its comment.
	Rule string
	// SetKind is the kind of the sets that there can't be.
	SetKind SetKind
	// Set is the name of one, of which the kernel refuses the element; all of it if that is the zero Element.
	Set     string
	Element Element
}

// Refused is what a node's kernel has refused, and its reason. What a refused part would let through is closed. Only
// what lets through by a policy, or puts a pod into its class, can be in it: without any other part the node isn't
// safe.
type Refused map[Refusal]string

// Kind is one part of a rule, which a kernel that lacks its module refuses in whatever rule it stands.
type Kind struct {
	Name string // the options, without their values
	Rule Rule   // an example that has no other part
}

// Kinds are the parts of a policy's rule: how it matches the peer, and how the port. A rule may have none.
func (r Rule) Kinds() []Kind {
	var kinds []Kind
	peer, port := Rule{Action: Return, Comment: "weir: a trial"}, Rule{Action: Return, Comment: "weir: a trial", Proto: r.Proto}
	var peers, ports strings.Builder
	for _, s := range r.Sets {
		if HoldsPorts(s.Name) {
			fmt.Fprintf(&ports, " -m set --match-set %s", s.Dir)
			port.Sets = append(port.Sets, s)
		} else {
			fmt.Fprintf(&peers, "-m set --match-set %s", s.Dir)
			peer.Sets = append(peer.Sets, s)
		}
	}
	if peers.Len() > 0 {
		kinds = append(kinds, Kind{peers.String(), peer})
	}
	if r.Proto == "" {
		return kinds
	}
	name := fmt.Sprintf("-p %s%s", r.Proto, ports.String())
	switch len(r.Ports) {
	case 0:
	case 1: // its number is none that a kernel would refuse
		name += fmt.Sprintf(" -m %s --dport", r.Proto)
		port.Ports = []PortRange{{1, 1}}
	default:
		name += " -m multiport --dports"
		port.Ports = []PortRange{{1, 1}, {3, 3}}
	}
	return append(kinds, Kind{name, port})
}

// Matched is the rule without its words: what the kernel refuses or takes, whatever the policy is called.
func (r Rule) Matched() string {
	r.Comment = ""
	return r.String()
}

func HoldsPorts(set string) bool {
	return strings.HasPrefix(set, conf.NamedPortSets) || strings.HasPrefix(set, conf.NumberSets)
}

// Set says why the kernel refuses the set; empty if it doesn't.
func (r Refused) Set(f conf.Family, t SetKind, name string) string {
	if why, ok := r[Refusal{Family: f, SetKind: t}]; ok {
		return fmt.Sprintf("the kernel refuses sets of type %s: %s", t, why)
	}
	if why, ok := r[Refusal{Family: f, Set: name}]; ok {
		return fmt.Sprintf("the kernel refuses the set %s: %s", name, why)
	}
	return ""
}

// Rule says why the kernel refuses the rule, and whether it does so for the way in which it matches ports.
func (r Refused) Rule(f conf.Family, rule Rule) (why string, ports bool) {
	if len(r) == 0 {
		return "", false
	}
	for _, k := range rule.Kinds() {
		if why, ok := r[Refusal{Family: f, Kind: k.Name}]; ok {
			return fmt.Sprintf("the kernel refuses rules with %s: %s", k.Name, why), k.Rule.Proto != ""
		}
	}
	if why, ok := r[Refusal{Family: f, Rule: rule.Matched()}]; ok {
		return "the kernel refuses the rule: " + why, false
	}
	return "", false
}

// Without leaves out the entries of the set that the kernel refuses, and tells of each.
func (r Refused) Without(s Set, tell func(e Entry, why string)) Set {
	if len(r) == 0 {
		return s
	}
	var taken []Entry
	for _, e := range s.Entries {
		why, refused := r[Refusal{Family: s.Family, Set: s.Name, Element: e.Element}]
		if refused {
			tell(e, fmt.Sprintf("the kernel refuses %s in the set %s: %s", e.Element, s.Name, why))
			continue
		}
		taken = append(taken, e)
	}
	s.Entries = taken
	return s
}
