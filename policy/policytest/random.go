// Package policytest makes random clusters for tests: small enough to be read when one fails, and drawn from few names,
// labels and ports, so that policies, pods and packets meet often.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

// Subnet is where the pods of this node have their addresses; Elsewhere, those of other nodes.
var (
	Subnet    = netip.MustParsePrefix("10.88.0.0/24")
	Elsewhere = netip.MustParsePrefix("10.88.1.0/24")
)

var (
	namespaces = []string{"x", "y", "z"}
	keys       = []string{"a", "b"}
	values     = []string{"1", "2"}
	numbers    = []int32{80, 81, 443}
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	blocks     = []string{"0.0.0.0/0", "10.88.0.0/24", "10.88.0.0/29", "10.88.1.0/24", "192.0.2.0/24", "10.88.0.2/32"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// State is a cluster of three namespaces, up to eight pods and up to five policies. Most pods are on this node.
func State(r *rand.Rand) policy.State {
	var s policy.State
	for _, name := range namespaces {
		s.Namespaces = append(s.Namespaces, policy.Namespace{Name: name, Labels: labels(r)})
	}
	for i := range 2 + r.IntN(7) {
		addPod(r, &s, i)
	}
	for i := range r.IntN(6) {
		s.Policies = append(s.Policies, Policy(r, i))
	}
	return s
}

func addPod(r *rand.Rand, s *policy.State, i int) {
	p := policy.Pod{Namespace: pick(r, namespaces), Name: fmt.Sprint("p", i), Labels: labels(r), HostNetwork: r.IntN(20) == 0, Finished: r.IntN(20) == 0}
	subnet := Subnet
	if r.IntN(4) == 0 {
		subnet = Elsewhere
	}
	b := subnet.Addr().As4()
	b[3] = byte(2 + i)
	p.Addresses = []netip.Addr{netip.AddrFrom4(b)}
	s.Pods = append(s.Pods, p)
	if subnet == Subnet && !p.HostNetwork && r.IntN(10) > 0 {
		e := endpoint.Endpoint{
			ContainerID: p.Name, IfName: "eth0", Enforcement: conf.Strict, Pod: endpoint.Pod{Namespace: p.Namespace, Name: p.Name},
			Addresses: []endpoint.Address{{Addr: p.Addresses[0], Subnet: Subnet, Gateway: Subnet.Addr().Next()}},
		}
		if r.IntN(10) == 0 {
			e.Pod.Name = "unknown"
		}
		s.Endpoints = append(s.Endpoints, e)
	}
}

// Change is the state after one to six things happened to it: labels changed, policies came, went or changed, pods
// came or went.
func Change(r *rand.Rand, old policy.State) policy.State {
	s := old
	s.Namespaces, s.Pods = slices.Clone(old.Namespaces), slices.Clone(old.Pods)
	s.Policies, s.Endpoints = slices.Clone(old.Policies), slices.Clone(old.Endpoints)
	for range 1 + r.IntN(6) {
		switch r.IntN(6) {
		case 0:
			s.Namespaces[r.IntN(len(s.Namespaces))].Labels = labels(r)
		case 1:
			s.Pods[r.IntN(len(s.Pods))].Labels = labels(r)
		case 2:
			s.Policies = append(s.Policies, Policy(r, 10+r.IntN(10)))
		case 3:
			if len(s.Policies) > 0 {
				i := r.IntN(len(s.Policies))
				s.Policies = slices.Delete(s.Policies, i, i+1)
			}
		case 4:
			if len(s.Policies) > 0 {
				s.Policies[r.IntN(len(s.Policies))] = Policy(r, r.IntN(6))
			}
		case 5:
			addPod(r, &s, 10+r.IntN(10))
		}
	}
	// Two policies of one name, or pods of one address, are no state of a cluster.
	seen := map[string]bool{}
	first := func(key string) bool {
		defer func() { seen[key] = true }()
		return seen[key]
	}
	s.Policies = slices.DeleteFunc(s.Policies, func(np *networkingv1.NetworkPolicy) bool { return first(np.Namespace + "/" + np.Name) })
	s.Pods = slices.DeleteFunc(s.Pods, func(p policy.Pod) bool { return first(p.Addresses[0].String()) || first("pod "+p.Name) })
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e endpoint.Endpoint) bool { return first("endpoint " + e.ContainerID) })
	return s
}

// Policy is a random NetworkPolicy.
func Policy(r *rand.Rand, i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, namespaces), Name: fmt.Sprint("np", i)}}
	np.Spec.PodSelector = *selector(r)
	np.Spec.PolicyTypes = pick(r, [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}})
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(r), Ports: ports(r)})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(r), Ports: ports(r)})
	}
	return np
}

func labels(r *rand.Rand) map[string]string {
	l := map[string]string{}
	for _, k := range keys {
		if r.IntN(2) == 0 {
			l[k] = pick(r, values)
		}
	}
	return l
}

func selector(r *rand.Rand) *metav1.LabelSelector {
	switch r.IntN(4) {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		op := pick(r, []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"})
		req := metav1.LabelSelectorRequirement{Key: pick(r, keys), Operator: op}
		if op == "In" || op == "NotIn" {
			req.Values = []string{pick(r, values)}
		}
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{req}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{pick(r, keys): pick(r, values)}}
}

func peers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var list []networkingv1.NetworkPolicyPeer
	for range r.IntN(3) {
		switch r.IntN(4) {
		case 0:
			block := &networkingv1.IPBlock{CIDR: pick(r, blocks)}
			for _, except := range blocks {
				outer, inner := netip.MustParsePrefix(block.CIDR), netip.MustParsePrefix(except)
				if inner.Bits() > outer.Bits() && outer.Contains(inner.Addr()) && r.IntN(3) == 0 {
					block.Except = append(block.Except, except)
				}
			}
			list = append(list, networkingv1.NetworkPolicyPeer{IPBlock: block})
		case 1:
			list = append(list, networkingv1.NetworkPolicyPeer{PodSelector: selector(r)})
		case 2:
			list = append(list, networkingv1.NetworkPolicyPeer{NamespaceSelector: selector(r)})
		case 3:
			list = append(list, networkingv1.NetworkPolicyPeer{PodSelector: selector(r), NamespaceSelector: selector(r)})
		}
	}
	return list
}

func ports(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var list []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if r.IntN(3) > 0 {
			proto := pick(r, protocols)
			p.Protocol = &proto
		}
		if r.IntN(4) > 0 {
			n := pick(r, numbers)
			port := intstr.FromInt32(n)
			p.Port = &port
			if r.IntN(3) == 0 {
				end := n + int32(r.IntN(3))
				p.EndPort = &end
			}
		}
		list = append(list, p)
	}
	return list
}

// Packets are first packets between all pairs of pods, the node and an address outside, on all ports and protocols.
func Packets(s policy.State) []policy.Packet {
	where := map[netip.Addr]string{
		netip.MustParseAddr("192.0.2.1"): "eth0", // outside
		netip.MustParseAddr("192.0.2.2"): "",     // the node
	}
	for _, p := range s.Pods {
		where[p.Addresses[0]] = "eth0"
	}
	for _, e := range s.Endpoints {
		where[e.Addresses[0].Addr] = conf.Bridge
	}
	var all []policy.Packet
	for src, in := range where {
		for dst, out := range where {
			if in == "" || (in != conf.Bridge && out == "") {
				continue // the node's own, and what comes to it from outside, isn't judged
			}
			for _, port := range []uint16{80, 81, 82, 443} {
				for _, proto := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, "1"} {
					all = append(all, policy.Packet{In: in, Out: out, Src: src, Dst: dst, Proto: proto, Port: port})
				}
			}
		}
	}
	return all
}
