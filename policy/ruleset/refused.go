package ruleset

import (
	"github.com/weir-net/weir/conf"
)

// Refusal names a part of a ruleset that a node's kernel refuses, such as a match whose module it lacks. One of Kind,
// Rule, SetKind and Set is given.
type Refusal struct {
	Family conf.Family
	// Kind is the name of a Kind: a part that rules of policies have in common.
	Kind string
	// Rule is the Key of one rule of a policy.
	Rule string
	// SetKind is the kind of the sets that the kernel can't make.
	SetKind SetKind
	// Set is the name of a set, of which the kernel refuses the element; all of it if that is the zero Element.
	Set     string
	Element Element
}

// Refused is what a node's kernel has refused. Each value says, in the backend's words, what that is and why: "the
// set weir-sel-X: REASON". The ruleset drops the packets that a refused part would allow. Only parts that allow
// packets by a policy, or put a pod into its class, are in it: without any other part the node isn't safe.
type Refused map[Refusal]string

// Kind is one part of a rule, which a kernel that lacks it refuses in whatever rule it stands.
type Kind struct {
	Name string
	Rule Rule // an example that has no other part
}

// Kinds returns the parts of a policy's rule: how it matches the peer, and how the port. A rule may have none.
func (r Rule) Kinds() []Kind {
	var kinds []Kind
	example := Rule{Action: Return, Comment: "weir: a trial"}
	peer, port := example, example
	port.Proto = r.Proto
	peerName, portName := "", string(r.Proto)
	for _, m := range r.Sets {
		if m.ports() {
			portName += ", " + string(m.By) + " in a set"
			port.Sets = append(port.Sets, m)
		} else {
			peerName += string(m.By) + " in a set"
			peer.Sets = append(peer.Sets, m)
		}
	}
	if peerName != "" {
		kinds = append(kinds, Kind{peerName, peer})
	}
	if r.Proto == "" {
		return kinds
	}
	switch len(r.Ports) {
	case 0:
	case 1: // its number is none that a kernel would refuse
		portName += ", one port"
		port.Ports = []PortRange{{1, 1}}
	default:
		portName += ", several ports"
		port.Ports = []PortRange{{1, 1}, {3, 3}}
	}
	return append(kinds, Kind{portName, port})
}

// ByPort reports whether the kind is a way to match ports.
func (k Kind) ByPort() bool { return k.Rule.Proto != "" }

// Set returns what the kernel has refused of the set, and why; empty if nothing.
func (r Refused) Set(f conf.Family, k SetKind, name string) string {
	if why, ok := r[Refusal{Family: f, SetKind: k}]; ok && k != "" {
		return why
	}
	return r[Refusal{Family: f, Set: name}]
}

// Rule returns what the kernel has refused of the rule and why, and whether that is the way in which it matches
// ports. The text is empty if nothing.
func (r Refused) Rule(f conf.Family, rule Rule) (why string, ports bool) {
	if len(r) == 0 {
		return "", false
	}
	for _, k := range rule.Kinds() {
		if why, ok := r[Refusal{Family: f, Kind: k.Name}]; ok {
			return why, k.ByPort()
		}
	}
	return r[Refusal{Family: f, Rule: rule.Key()}], false
}

// Without leaves out the entries of the set that the kernel refuses, and reports each with what the backend says of it.
func (r Refused) Without(s Set, report func(e Entry, why string)) Set {
	if len(r) == 0 {
		return s
	}
	var kept []Entry
	for _, e := range s.Entries {
		if why, refused := r[Refusal{Family: s.Family, Set: s.Name, Element: e.Element}]; refused {
			report(e, why)
			continue
		}
		kept = append(kept, e)
	}
	s.Entries = kept
	return s
}
