// Package propose writes rules of NetworkPolicies that allow given connections.
//
// Invariants:
//   - The package is pure.
//   - A policy with the rules allows the connections, except those that a policy's ports can't name. Rules returns
//     these connections separately.
//   - The rules allow each peer only the ports of its own connections.
package propose

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Traffic stands for connections that a policy can't tell apart.
type Traffic struct {
	Direction ruleset.Direction
	Namespace string
	Peer      Peer
	Protocol  ruleset.Protocol
	Port      uint16
}

// Peer is the other end of a connection. If Namespace is empty, the peer is the Address. Otherwise the peer is all
// pods in this namespace that have these Labels.
type Peer struct {
	Namespace string
	Labels    map[string]string
	Address   netip.Addr
}

// Labels returns the labels by which a policy should select the pod: those that all pods of its workload have.
func Labels(p *policy.Pod) map[string]string {
	labels := maps.Clone(p.Labels)
	maps.DeleteFunc(labels, func(key, _ string) bool { return policy.IsOfOnePod(key) || slices.Contains(p.Unknown, key) })
	return labels
}

// Rules returns rules that allow the traffic. The result left has the traffic that a policy's ports can't name, such
// as ICMP. There are no rules for this traffic, because such a rule would allow all protocols and ports.
func Rules(traffic []Traffic) (
	ingress []networkingv1.NetworkPolicyIngressRule, egress []networkingv1.NetworkPolicyEgressRule, left []Traffic,
) {
	for _, d := range [...]ruleset.Direction{ruleset.Ingress, ruleset.Egress} {
		for _, r := range rulesOf(d, traffic) {
			if d == ruleset.Ingress {
				ingress = append(ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers, Ports: r.ports})
			} else {
				egress = append(egress, networkingv1.NetworkPolicyEgressRule{To: r.peers, Ports: r.ports})
			}
		}
	}
	for _, t := range traffic {
		if !t.hasPort() {
			left = append(left, t)
		}
	}
	return ingress, egress, left
}

func (t Traffic) hasPort() bool {
	named := t.Protocol == ruleset.TCP || t.Protocol == ruleset.UDP || t.Protocol == ruleset.SCTP
	return named && t.Port != 0
}

type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

type port struct {
	proto  ruleset.Protocol
	number uint16
}

func (p port) compare(o port) int {
	return cmp.Or(cmp.Compare(p.proto, o.proto), cmp.Compare(p.number, o.number))
}

func rulesOf(d ruleset.Direction, traffic []Traffic) (rules []rule) {
	peers, portsOf := map[string]networkingv1.NetworkPolicyPeer{}, map[string]map[port]bool{}
	for _, t := range traffic {
		if t.Direction != d || !t.hasPort() {
			continue
		}
		key := t.Peer.key()
		if peers[key] = t.Peer.selected(t.Namespace); portsOf[key] == nil {
			portsOf[key] = map[port]bool{}
		}
		portsOf[key][port{t.Protocol, t.Port}] = true
	}
	byPorts := map[string]int{}
	for _, key := range slices.Sorted(maps.Keys(peers)) {
		ports := slices.SortedFunc(maps.Keys(portsOf[key]), port.compare)
		var text strings.Builder
		var list []networkingv1.NetworkPolicyPort
		for _, p := range ports {
			proto := corev1.Protocol(strings.ToUpper(string(p.proto)))
			number := intstr.FromInt32(int32(p.number))
			list = append(list, networkingv1.NetworkPolicyPort{Protocol: &proto, Port: &number})
			text.WriteString(string(proto) + number.String() + " ")
		}
		at, known := byPorts[text.String()]
		if !known {
			at = len(rules)
			byPorts[text.String()] = at
			rules = append(rules, rule{ports: list})
		}
		rules[at].peers = append(rules[at].peers, peers[key])
	}
	return rules
}

func (p Peer) key() string {
	if p.Namespace == "" {
		return " " + p.Address.String()
	}
	var b strings.Builder
	b.WriteString(p.Namespace)
	for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
		b.WriteString("\n" + key + "=" + p.Labels[key])
	}
	return b.String()
}

func (p Peer) selected(namespace string) (peer networkingv1.NetworkPolicyPeer) {
	if p.Namespace == "" {
		peer.IPBlock = &networkingv1.IPBlock{CIDR: netip.PrefixFrom(p.Address, p.Address.BitLen()).String()}
		return peer
	}
	peer.PodSelector = &metav1.LabelSelector{MatchLabels: p.Labels}
	if p.Namespace != namespace {
		peer.NamespaceSelector = &metav1.LabelSelector{
			MatchLabels: map[string]string{corev1.LabelMetadataName: p.Namespace},
		}
	}
	return peer
}
