package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// fewMisses is a limit: if a connection misses more conditions of the nearest rule, the advice also has a new rule
// (Side.Change).
const fewMisses = 2

const maxNear = 20

func (x *explainer) nearest(d ruleset.Direction, p verdict.Packet, peer Place, audited bool) []verdict.Near {
	near := x.evaluator.Nearest(d, p, audited)
	near = near[:min(len(near), maxNear)]
	standIn(near, x.label(peer), peer)
	if len(x.owners(peer.Address)) > 1 {
		forSeveral(near, peer)
	}
	return near
}

// standIn rewrites unmet conditions (misses) about some peers, because the usual advice doesn't help there. These
// peers are hosts outside of the cluster, an address that stands for several nodes, a closed pod, and a pod with a
// made-up address.
func standIn(all []verdict.Near, name string, peer Place) {
	for _, near := range all {
		for i := range near.Misses {
			m := &near.Misses[i]
			network, err := netip.ParsePrefix(m.Wants)
			switch {
			case peer.isWorld && m.Kind == verdict.MissBlock && err == nil && network.Addr().Is4() != peer.Address.Is4():
				m.Why = fmt.Sprintf("the connection is %s, and %s is not", conf.FamilyOf(peer.Address), network)
				m.Change = fmt.Sprintf("add an ipBlock with the %s network of these hosts to the rule", conf.FamilyOf(peer.Address))
			case peer.isWorld && m.Kind == verdict.MissNoPod:
				m.Why = "hosts outside of the cluster are no pods, and selectors match only pods"
				m.Change = "add an ipBlock with the network of these hosts to the rule"
			case peer.isWorld && m.Kind == verdict.MissBlock && err != nil: // m.Wants is "not NETWORK": an except
				m.Change = "add an ipBlock with the network of these hosts to the rule"
			case peer.isWorld && m.Kind == verdict.MissBlock:
				m.Why = fmt.Sprintf("hosts outside of the cluster need not be in %s", m.Wants)
				m.Change = "ask about the address of one of these hosts, or add their network to the rule"
			case peer.isAnyNode && (m.Kind == verdict.MissNoPod || m.Kind == verdict.MissBlock):
				m.Change = fmt.Sprintf("add ipBlocks with such an address of each node, here %s, to the rule", peer.Address)
			case peer.Here && peer.Pod != "" && m.Kind == verdict.MissNoPod:
				m.Why = fmt.Sprintf("pod %s is closed, and no selector matches a closed pod", name)
				m.Change = "let the agent know the pod, as a note says"
			case peer.Invented && m.Kind == verdict.MissBlock:
				m.Why = fmt.Sprintf("the source has no address of %s, so it is unknown whether %s contains it", name, m.Wants)
			}
		}
	}
}

// forSeveral rewrites the advice if several pods have the peer's address in their status. The user must then change all
// these pods, and not only one.
func forSeveral(all []verdict.Near, peer Place) {
	ofPod := []verdict.Kind{verdict.MissLabel, verdict.MissNamespaceLabel, verdict.MissNamespace, verdict.MissBlock}
	for _, near := range all {
		for i := range near.Misses {
			if m := &near.Misses[i]; slices.Contains(ofPod, m.Kind) {
				m.Label = verdict.LabelChange{}
				m.Change = fmt.Sprintf("find out which pod has %s, as a note says, or add an ipBlock with %s to the rule",
					peer.Address, peer.Address)
			}
		}
	}
}

// isolatesToo reports whether somebody who follows the advice in near would only move the drop to the connection's
// other end. This happens if the advice is to give the pod at the other end some labels, and policies that select the
// pod by these labels don't allow the connection.
func (x *explainer) isolatesToo(near verdict.Near, d ruleset.Direction, p verdict.Packet) bool {
	v := x.evaluator.Evaluate(p)
	at, of, direction, was := p.Dst, p.Src, ruleset.Egress, v.Egress
	if d == ruleset.Egress {
		at, of, direction, was = p.Src, p.Dst, ruleset.Ingress, v.Ingress
	}
	pods := x.evaluator.At(of).Pods()
	if !was.Allowed() || was.Off || len(pods) != 1 {
		return false
	}
	for _, m := range near.Misses {
		if m.Label.Key != "" && m.Object == "Pod "+pods[0].Namespace+"/"+pods[0].Name {
			pods[0].Labels = m.Label.Apply(pods[0].Labels)
		}
	}
	changed, peer := x.evaluator.Without(pods[0]), x.evaluator.At(at)
	dst := peer
	if d == ruleset.Egress {
		dst = changed
	}
	allows := func(t verdict.Terms) bool { return t.Means(peer) && t.Opens(p.Proto, p.Port, dst) }
	return slices.ContainsFunc(x.evaluator.Isolation(direction, changed).Either, func(i verdict.Isolated) bool {
		return !slices.ContainsFunc(i.Terms, allows)
	})
}

// needed says which rule to add so that the policies of s allow the connection.
func (x *explainer) needed(s Side, at, peer Place, p verdict.Packet) string {
	namespace, _, _ := strings.Cut(at.Pod, "/")
	ports := "for all ports (no other rule allows ICMP)"
	if p.Port != 0 {
		ports = fmt.Sprintf("for %s port %d", strings.ToUpper(string(p.Proto)), p.Port)
	}
	preposition := map[ruleset.Direction]string{ruleset.Ingress: "from", ruleset.Egress: "to"}[s.Direction]
	end := x.label(peer)
	switch {
	case peer.isWorld:
		end = "the network of these hosts"
	case peer.isAnyNode:
		end = fmt.Sprintf("such an address of each node, here %s,", peer.Address)
	}
	rule := fmt.Sprintf("add an %s rule %s %s %s to", s.Direction, preposition, end, ports)
	another := fmt.Sprintf("a new policy in namespace %s that selects %s", namespace, at.Pod)
	sound, faulty := x.withoutFaults(s.Policies)
	switch {
	case len(faulty) == 0:
		return fmt.Sprintf("%s one of these policies, or to %s", rule, another)
	case len(sound) == 0:
		return fmt.Sprintf("correct NetworkPolicy %s, as the notes say, or %s %s", excerpt.List(faulty, ", "), rule, another)
	}
	return fmt.Sprintf("%s NetworkPolicy %s, or to %s. No rule of %s counts until its error is corrected", rule,
		excerpt.List(sound, " or "), another, excerpt.List(faulty, ", "))
}

// withoutFaults divides the policies into sound and faulty ones. A faulty policy has an error because of which none of
// its rules counts.
func (x *explainer) withoutFaults(policies []string) (sound, faulty []string) {
	for _, name := range policies {
		is := func(np *networkingv1.NetworkPolicy) bool {
			return np.Namespace+"/"+np.Name == name && len(np.Spec.Ingress)+len(np.Spec.Egress) == 0
		}
		wrong := func(p ruleset.Problem) bool {
			of, ok := p.Policy()
			return ok && of == name && !strings.HasPrefix(p.Field, "metadata.annotations")
		}
		if slices.ContainsFunc(x.Policies, is) && slices.ContainsFunc(x.Problems, wrong) {
			faulty = append(faulty, name)
			continue
		}
		sound = append(sound, name)
	}
	return sound, faulty
}
