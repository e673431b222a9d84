package ruleset

import (
	"github.com/weir-net/weir/conf"
)

// Refusal names a part of a ruleset that a node's kernel refuses, for example because it needs a missing kernel module.
// Exactly one of Kind, Rule, SetKind and Set names the part. The others are empty.
type Refusal struct {
	Family conf.Family
	// Kind is the Name of a Kind (see below), such as the look-up of a peer in a set. Several rules can have this part.
	Kind string
	// Rule is the Key of one rule of a policy.
	Rule    string
	SetKind SetKind
	// Set is the name of a set. The kernel refuses its Element, or the whole set if Element is zero.
	Set     string
	Element Element
}

// Refused has the parts that a node's kernel has refused, with the reasons. In a ruleset without these parts, all
// packets that the whole ruleset denies are also denied.
type Refused map[Refusal]string

// Kind is a part of a rule. A kernel that doesn't support the part refuses all rules with it.
type Kind struct {
	Name string
	Rule Rule // an example of a rule with only this part
}

// Kinds returns the parts of a policy's rule: the match of the peer, and the match of the port.
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
	case 1: // any number will do, because a kernel that supports one port number supports all port numbers
		portName += ", one port"
		port.Ports = []PortRange{{1, 1}}
	default:
		portName += ", several ports"
		port.Ports = []PortRange{{1, 1}, {3, 3}}
	}
	return append(kinds, Kind{portName, port})
}

// ByPort reports whether the kind matches ports or the protocol, and not the peer.
func (k Kind) ByPort() bool { return k.Rule.Proto != "" }

// Set returns why the kernel has refused this set, or all sets of this kind. It returns "" if the kernel has refused
// neither.
func (r Refused) Set(f conf.Family, k SetKind, name string) string {
	if why, ok := r[Refusal{Family: f, SetKind: k}]; ok && k != "" {
		return why
	}
	return r[Refusal{Family: f, Set: name}]
}

// Rule returns why the kernel has refused the rule or a part of it. It returns "" if the kernel has refused neither.
// ports is true if the refused part matches ports or the protocol.
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

// Without returns the set without the entries that the kernel refuses. It calls the parameter "report" for each of
// these entries.
func (r Refused) Without(s Set, report func(e Entry, why string)) Set {
	if len(r) == 0 {
		return s
	}
	kept := s.Entries
	for e := range s.Entries.All() {
		if why, refused := r[Refusal{Family: s.Family, Set: s.Name, Element: e.Element}]; refused {
			report(e, why)
			kept = kept.Without(e.Element)
		}
	}
	s.Entries = kept
	return s
}
