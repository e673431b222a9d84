// Package verdict says what the NetworkPolicies mean for one packet, and which of them decided.
//
// It is written from the text of networking.k8s.io/v1 alone, and shares nothing with the compiler but the model of the
// state: each can prove the other wrong. It speaks of policies only; what else weir drops (forged senders, the port of
// the tunnels between nodes) and what no rule ever sees (a node's packets to its own pods) are not its affair.
package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Packet is the first one of a connection, after Services have been translated.
type Packet struct {
	Src   netip.Addr       `json:"source"`
	Dst   netip.Addr       `json:"destination"`
	Proto ruleset.Protocol `json:"protocol"`
	Port  uint16           `json:"port"` // of the destination; 0 for protocols without ports
}

// Verdict on a packet. It passes if both of its ends let it.
type Verdict struct {
	Packet Packet `json:"packet"`
	// Self: a pod reaches itself, which no policy can forbid.
	Self    bool `json:"self"`
	Egress  Side `json:"egress"`
	Ingress Side `json:"ingress"`
}

// Side is the verdict of the policies at one end of the packet.
type Side struct {
	Pod string `json:"pod,omitempty"` // namespace/name; empty: it is not a pod's end, and nobody's policies apply
	// Here: the pod is on this node, whose rules check it. Elsewhere its own node does.
	Here bool `json:"here"`
	// Unknown pods are closed, whatever the policies say; those with enforcement off are open.
	Unknown bool `json:"unknown"`
	Off     bool `json:"off"`
	// Policies that isolate the pod in this direction. If there is one, at least one of their rules must match.
	Policies []Policy `json:"policies"`
	// Either are the verdicts on each of the pods that this one may be, if that isn't certain: the packet must be let
	// through by all of them.
	Either []Side `json:"either,omitempty"`
}

// Policy that isolates a pod, with what each of its rules says.
type Policy struct {
	Name  string `json:"name"` // namespace/name
	Rules []Rule `json:"rules"`
}

// Rule matches if one of its peers and one of its ports do.
type Rule struct {
	Field string `json:"field"`
	Peer  string `json:"peer,omitempty"` // the first that matches, as a field of the policy; empty: none does
	Port  string `json:"port,omitempty"`
}

// Everyone and EveryPort stand for a peer and a port that a rule doesn't restrict.
const (
	Everyone  = "everyone"
	EveryPort = "every port"
)

// Allows says whether the rule lets the packet through.
func (r Rule) Allows() bool { return r.Peer != "" && r.Port != "" }

// Allowed says whether this end lets the packet through.
func (s Side) Allowed() bool {
	switch {
	case s.Unknown || s.Off:
		return s.Off
	case len(s.Either) > 0:
		return !slices.ContainsFunc(s.Either, func(o Side) bool { return !o.Allowed() })
	case len(s.Policies) == 0:
		return true
	}
	return slices.ContainsFunc(s.Policies, func(p Policy) bool { return slices.ContainsFunc(p.Rules, Rule.Allows) })
}

// Allowed says whether the packet passes from end to end.
func (v Verdict) Allowed() bool { return v.Self || (v.Egress.Allowed() && v.Ingress.Allowed()) }

// AllowedHere says whether this node lets the packet pass: what the other node does is not asked.
func (v Verdict) AllowedHere() bool {
	return v.Self || ((!v.Egress.Here || v.Egress.Allowed()) && (!v.Ingress.Here || v.Ingress.Allowed()))
}

// String is the whole story, in lines that a person reads.
func (v Verdict) String() string {
	var b strings.Builder
	word := map[bool]string{true: "allowed", false: "dropped"}
	fmt.Fprintf(&b, "%s from %s to %s", v.Packet.Proto, v.Packet.Src, v.Packet.Dst)
	if v.Packet.Port != 0 {
		fmt.Fprintf(&b, " port %d", v.Packet.Port)
	}
	fmt.Fprintf(&b, ": %s\n", word[v.Allowed()])
	if v.Self {
		b.WriteString("a pod always reaches itself\n")
		return b.String()
	}
	for _, d := range []struct {
		ruleset.Direction
		Side
	}{{ruleset.Egress, v.Egress}, {ruleset.Ingress, v.Ingress}} {
		fmt.Fprintf(&b, "%s: %s", d.Direction, word[d.Allowed()])
		switch {
		case len(d.Either) > 0:
			fmt.Fprintf(&b, ": %s may be one of %d pods, and each of them must be let through\n", d.Pod, len(d.Either))
		case d.Off:
			fmt.Fprintf(&b, ": enforcement is off for %s\n", d.Pod)
		case d.Unknown:
			fmt.Fprintf(&b, ": %s is not known yet\n", d.Pod)
		case d.Pod == "":
			b.WriteString(": not a pod\n")
		case len(d.Policies) == 0:
			fmt.Fprintf(&b, ": no policy isolates %s\n", d.Pod)
		default:
			fmt.Fprintf(&b, ": %s is isolated by\n", d.Pod)
		}
		for _, p := range d.Policies {
			fmt.Fprintf(&b, "  %s\n", p.Name)
			for _, r := range p.Rules {
				fmt.Fprintf(&b, "    %s\n", r)
			}
		}
	}
	return b.String()
}

// String says in a line what the rule does with the packet.
func (r Rule) String() string {
	switch {
	case r.Allows():
		return fmt.Sprintf("%s allows it: %s, %s", r.Field, r.Peer, r.Port)
	case r.Peer == "" && r.Port == "":
		return r.Field + ": no peer and no port matches"
	case r.Peer == "":
		return r.Field + ": no peer matches"
	}
	return fmt.Sprintf("%s: %s matches, but no port", r.Field, r.Peer)
}

// Evaluate returns the verdict on the packet.
func (e *Evaluator) Evaluate(p Packet) Verdict {
	src, dst := e.end(p.Src), e.end(p.Dst)
	return Verdict{
		Packet:  p,
		Self:    p.Src == p.Dst,
		Egress:  e.side(ruleset.Egress, src, dst, p, dst),
		Ingress: e.side(ruleset.Ingress, dst, src, p, dst),
	}
}

// side: "By default, a pod is non-isolated […]; all connections are allowed. A pod is isolated […] if there is any
// NetworkPolicy that both selects the pod and has [the direction] in its policyTypes"; then the allowed connections are
// the union of what those policies allow (kubernetes.io, Network Policies, "The two sorts of pod isolation").
func (e *Evaluator) side(d ruleset.Direction, subject, peer end, p Packet, dst end) Side {
	s := Side{Pod: subject.name, Here: subject.here, Off: subject.enforcement == conf.Off}
	s.Unknown = s.Here && len(subject.pods) == 0 && !s.Off
	if s.Off || s.Unknown {
		return s
	}
	if s.Here && len(subject.pods) > 1 {
		for _, one := range subject.pods {
			alone := subject
			alone.pods = []pod{one}
			s.Either = append(s.Either, e.side(d, alone, peer, p, dst))
		}
		return s
	}
	for _, np := range e.policies {
		rules, isolates := np.rules[d]
		certainly, possibly := false, false
		for _, o := range subject.pods {
			is, may := np.selects(o)
			certainly, possibly = certainly || is, possibly || may
		}
		if !isolates || !possibly {
			continue
		}
		if !certainly { // it may isolate the pod, but nobody knows whether it lets anything through to or from it
			rules = nil
		}
		said := Policy{Name: np.name}
		for _, r := range rules {
			said.Rules = append(said.Rules, Rule{
				Field: r.field,
				Peer:  first(r.peers, func(m peerMatch) bool { return m(peer) }),
				Port:  first(r.ports, func(m portMatch) bool { return m(p.Proto, p.Port, dst) }),
			})
		}
		s.Policies = append(s.Policies, said)
	}
	return s
}

// first is the field of the first one that matches.
func first[M any](list []named[M], matches func(M) bool) string {
	if i := slices.IndexFunc(list, func(n named[M]) bool { return matches(n.match) }); i >= 0 {
		return list[i].field
	}
	return ""
}
