package cluster

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Attack has policies of one tenant that are meant to take much of the agent's time. Each policy is small enough for
// the API server.
type Attack struct {
	Name string
	// Namespaces is the number of the tenant's namespaces. Each has a pod on the measured node.
	Namespaces int
	policies   int // number of policies in each namespace
	spec       func(policy int) networkingv1.NetworkPolicySpec
}

var Attacks = []Attack{
	{"one policy of 900 peers, each NotIn 100 values", 1, 1, func(int) networkingv1.NetworkPolicySpec {
		return peersOf(900, func(i int) metav1.LabelSelector {
			values := make([]string, 100)
			for v := range values {
				values[v] = fmt.Sprintf("value-%03d-%02d", i, v)
			}
			return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
				Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: values,
			}}}
		})
	}},
	{"200 policies of 1,000 peers", 1, 200, distinctPeers(1000)},
	{"17 namespaces of 4 policies of 1,000 selectors", 17, 4, distinctPeers(1000)},
	{"40 policies of 16,000 ipBlocks", 1, 40, func(policy int) networkingv1.NetworkPolicySpec {
		spec := networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}
		peers := make([]networkingv1.NetworkPolicyPeer, 16_000)
		for i := range peers {
			peers[i].IPBlock = &networkingv1.IPBlock{CIDR: fmt.Sprintf("%d.%d.%d.0/24", 11+policy, i>>8, i&0xff)}
		}
		spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
		return spec
	}},
}

func (a Attack) NamespaceName(i int) string { return fmt.Sprintf("attacker-%d", i) }

func (a Attack) Policies(namespace int) []*networkingv1.NetworkPolicy {
	all := make([]*networkingv1.NetworkPolicy, a.policies)
	for i := range all {
		name := fmt.Sprintf("attack-%d", i)
		all[i] = &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: a.NamespaceName(namespace), Name: name, UID: types.UID("uid-of-" + name), CreationTimestamp: born,
			},
			Spec: a.spec(namespace*a.policies + i),
		}
	}
	return all
}

func distinctPeers(n int) func(policy int) networkingv1.NetworkPolicySpec {
	return func(policy int) networkingv1.NetworkPolicySpec {
		return peersOf(n, func(i int) metav1.LabelSelector {
			return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
				Key: fmt.Sprintf("key-%d-%d", policy, i), Operator: metav1.LabelSelectorOpDoesNotExist,
			}}}
		})
	}
}

func peersOf(n int, selector func(i int) metav1.LabelSelector) networkingv1.NetworkPolicySpec {
	spec := networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}
	peers := make([]networkingv1.NetworkPolicyPeer, n)
	for i := range peers {
		s := selector(i)
		peers[i] = networkingv1.NetworkPolicyPeer{PodSelector: &s, NamespaceSelector: &metav1.LabelSelector{}}
	}
	spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	return spec
}
