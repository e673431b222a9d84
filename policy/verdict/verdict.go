// Package verdict evaluates a packet against NetworkPolicies. A verdict names the policies and rules that have decided.
// The package knows only policies. weir also drops packets for other reasons, and doesn't check packets from a node to
// its own pods.
//
// Invariants:
//   - The package is pure. It follows only the text of networking.k8s.io/v1.
//   - It shares only the model with the compiler. So tests that compare the two find errors of either.
//   - A part of a policy that can't be read allows nothing. A policy whose selector can't be read isolates all pods of
//     its namespace.
//   - If it depends on an unknown label whether a policy selects a pod, the policy isolates the pod and allows nothing.
//     An unknown label never makes a peer match.
package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Packet is the first packet of a connection, after the translation of a Service's address.
type Packet struct {
	Src   netip.Addr       `json:"source"`
	Dst   netip.Addr       `json:"destination"`
	Proto ruleset.Protocol `json:"protocol"`
	Port  uint16           `json:"port"` // the destination's port; 0 for protocols without ports
}

// Verdict is the verdict on a packet. The packet passes if the policies at both ends allow it, or if source and
// destination are equal (Self).
type Verdict struct {
	Packet  Packet `json:"packet"`
	Self    bool   `json:"self"`
	Egress  Side   `json:"egress"`
	Ingress Side   `json:"ingress"`
}

// Side is the verdict of the policies at one end.
type Side struct {
	Pod  string `json:"pod,omitempty"` // namespace/name; empty if there is no pod, so that no policy applies
	Here bool   `json:"here"`
	// Unknown is true if the pod is unknown, so that everything is denied. Off is true if enforcement is off for the
	// pod, so that everything is allowed.
	Unknown bool `json:"unknown"`
	Off     bool `json:"off"`
	// Policies has the policies that isolate the pod in this direction. If there are any, one of their rules must
	// match.
	Policies []Policy `json:"policies"`
	// Audited has the audited policies that would isolate the pod if they were enforced. They don't change the verdict.
	Audited []Policy `json:"audited,omitempty"`
	// Either has a verdict for each pod, if this end is on this node and may be one of several pods. All of them must
	// allow the packet.
	Either []Side `json:"either,omitempty"`
}

// Policy is a policy that isolates a pod, with the result of each of its rules.
type Policy struct {
	Name  string `json:"name"` // namespace/name
	Rules []Rule `json:"rules"`
}

// Rule is the result of one rule of a policy. The rule allows the packet if one of its peers and one of its ports
// match.
type Rule struct {
	Field string `json:"field"`
	Peer  string `json:"peer,omitempty"` // the field of the first peer that matches, or ""
	Port  string `json:"port,omitempty"` // the field of the first port that matches, or ""
}

// Everyone is the peer of a rule without peers, and EveryPort the port of a rule without ports.
const (
	Everyone  = "everyone"
	EveryPort = "every port"
)

// Allows reports whether both a peer and a port match.
func (r Rule) Allows() bool { return r.Peer != "" && r.Port != "" }

// Allowed reports whether the policies at this end allow the packet. If the end may be one of several pods, the
// policies of each pod must allow it.
func (s Side) Allowed() bool { return s.allowedBy(func(o Side) []Policy { return o.Policies }) }

// AllowedByAll reports whether this end would allow the packet if the audited policies were also enforced.
func (s Side) AllowedByAll() bool {
	return s.allowedBy(func(o Side) []Policy { return slices.Concat(o.Policies, o.Audited) })
}

func (s Side) allowedBy(policies func(Side) []Policy) bool {
	switch {
	case s.Unknown || s.Off:
		return s.Off
	case len(s.Either) > 0:
		return !slices.ContainsFunc(s.Either, func(o Side) bool { return !o.allowedBy(policies) })
	}
	isolating := policies(s)
	return len(isolating) == 0 ||
		slices.ContainsFunc(isolating, func(p Policy) bool { return slices.ContainsFunc(p.Rules, Rule.Allows) })
}

// Allowed reports whether the packet passes: both ends allow it, or source and destination are equal.
func (v Verdict) Allowed() bool { return v.Self || (v.Egress.Allowed() && v.Ingress.Allowed()) }

// WouldDrop returns the directions in which audited policies would drop the packet if they were enforced. If the
// enforced policies drop the packet, WouldDrop returns none.
func (v Verdict) WouldDrop() (directions []ruleset.Direction) {
	if v.Self || !v.Allowed() {
		return nil
	}
	if !v.Egress.AllowedByAll() {
		directions = append(directions, ruleset.Egress)
	}
	if !v.Ingress.AllowedByAll() {
		directions = append(directions, ruleset.Ingress)
	}
	return directions
}

// AllowedHere reports whether this node's rules allow the packet. It ignores ends on other nodes.
func (v Verdict) AllowedHere() bool {
	return v.Self || ((!v.Egress.Here || v.Egress.Allowed()) && (!v.Ingress.Here || v.Ingress.Allowed()))
}

// String returns the verdict and its reasons, in several lines.
func (v Verdict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s from %s to %s", v.Packet.Proto, v.Packet.Src, v.Packet.Dst)
	if v.Packet.Port != 0 {
		fmt.Fprintf(&b, " port %d", v.Packet.Port)
	}
	fmt.Fprintf(&b, ": %s\n", result(v.Allowed()))
	if v.Self {
		b.WriteString("a pod always reaches itself\n")
		return b.String()
	}
	for _, d := range []struct {
		ruleset.Direction
		Side
	}{{ruleset.Egress, v.Egress}, {ruleset.Ingress, v.Ingress}} {
		fmt.Fprintf(&b, "%s: %s", d.Direction, result(d.Allowed()))
		switch {
		case len(d.Either) > 0:
			fmt.Fprintf(&b, ": %s may be one of %d pods, and the policies must allow each of them\n", d.Pod, len(d.Either))
		case d.Off:
			fmt.Fprintf(&b, ": enforcement is off for %s\n", d.Pod)
		case d.Unknown:
			fmt.Fprintf(&b, ": %s is not known yet\n", d.Pod)
		case d.Pod == "":
			b.WriteString(": not a pod\n")
		case len(d.Policies) == 0 && len(d.Audited) > 0:
			fmt.Fprintf(&b, ": only audited policies would isolate %s\n", d.Pod)
		case len(d.Policies) == 0:
			fmt.Fprintf(&b, ": no policy isolates %s\n", d.Pod)
		default:
			fmt.Fprintf(&b, ": %s is isolated by\n", d.Pod)
		}
		for i, p := range slices.Concat(d.Policies, d.Audited) {
			fmt.Fprintf(&b, "  %s%s\n", p.Name, map[bool]string{true: " (audited)"}[i >= len(d.Policies)])
			for _, r := range p.Rules {
				fmt.Fprintf(&b, "    %s\n", r)
			}
		}
	}
	return b.String()
}

func result(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "dropped"
}

// String returns one line that says whether the rule allows the packet, and which part of the rule matches.
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

// Evaluate returns the verdict on the packet at both ends, even if an end is on another node.
func (e *Evaluator) Evaluate(p Packet) Verdict {
	src, dst := e.end(p.Src), e.end(p.Dst)
	return Verdict{
		Packet:  p,
		Self:    p.Src == p.Dst,
		Egress:  e.side(ruleset.Egress, src, dst, p, dst),
		Ingress: e.side(ruleset.Ingress, dst, src, p, dst),
	}
}

// side returns the verdict of the policies at one end. It follows "The two sorts of pod isolation" (kubernetes.io,
// Network Policies): "By default, a pod is non-isolated […]; all connections are allowed. A pod is isolated […] if
// there is any NetworkPolicy that both selects the pod and has [the direction] in its policyTypes". If the pod is
// isolated, one of these policies must allow the packet.
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
		certainly, possibly := np.selectsOneOf(subject.pods)
		if !isolates || !possibly {
			continue
		}
		if !certainly { // the policy may select the pod, so it isolates the pod and allows nothing
			rules = nil
		}
		evaluated := Policy{Name: np.name}
		for _, r := range rules {
			evaluated.Rules = append(evaluated.Rules, Rule{
				Field: r.field,
				Peer:  first(r.peers, func(m peerMatch) bool { return m(peer) }),
				Port:  first(r.ports, func(m portMatch) bool { return m(p.Proto, p.Port, dst) }),
			})
		}
		if np.audited {
			s.Audited = append(s.Audited, evaluated)
		} else {
			s.Policies = append(s.Policies, evaluated)
		}
	}
	return s
}

func first[M any](list []named[M], matches func(M) bool) string {
	if i := slices.IndexFunc(list, func(n named[M]) bool { return matches(n.match) }); i >= 0 {
		return list[i].field
	}
	return ""
}
