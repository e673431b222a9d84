package policytest

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// This file makes long lists of ports and peers for policies. No two ports, addresses or selectors of a list can be
// merged into one.

// OddPorts returns the n ports 1, 3, 5 and so on.
func OddPorts(n int) []networkingv1.NetworkPolicyPort {
	list := make([]networkingv1.NetworkPolicyPort, n)
	for i := range list {
		port := intstr.FromInt32(int32(2*i + 1))
		list[i].Port = &port
	}
	return list
}

// EvenAddresses returns an ipBlock for each of n even addresses, beginning with 172.16.0.0.
func EvenAddresses(n int) []networkingv1.NetworkPolicyPeer {
	list := make([]networkingv1.NetworkPolicyPeer, n)
	for i, a := range everyOther(n) {
		list[i].IPBlock = &networkingv1.IPBlock{CIDR: a + "/32"}
	}
	return list
}

// AllButEven returns an ipBlock of all addresses, except the n addresses that EvenAddresses returns.
func AllButEven(n int) []networkingv1.NetworkPolicyPeer {
	b := &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}
	for _, a := range everyOther(n) {
		b.Except = append(b.Except, a+"/32")
	}
	return []networkingv1.NetworkPolicyPeer{{IPBlock: b}}
}

func everyOther(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{172, byte(16 + i>>15), byte(i >> 7), byte(i << 1)}).String()
	}
	return all
}

// Selectors returns n podSelectors: number=FROM, number=FROM+1, and so on.
func Selectors(from, n int) []networkingv1.NetworkPolicyPeer {
	list := make([]networkingv1.NetworkPolicyPeer, n)
	for i := range list {
		list[i].PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"number": fmt.Sprint(from + i)}}
	}
	return list
}

// Letting returns a policy in namespace x. It isolates the pods with the given labels for ingress, and allows
// connections from the given peers to the given ports.
func Letting(name string, pods map[string]string, from []networkingv1.NetworkPolicyPeer,
	ports ...networkingv1.NetworkPolicyPort,
) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: pods},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: from, Ports: ports}},
		},
	}
}
