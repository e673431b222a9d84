package policytest

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
)

// Policy returns a random NetworkPolicy with the number i in its name. A few of these policies have an error.
func Policy(r *rand.Rand, i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, namespaces), Name: fmt.Sprint("np", i)},
	}
	np.Spec.PodSelector = *selector(r)
	np.Spec.PolicyTypes = pick(r, [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}})
	if r.IntN(100) == 0 {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingres"}
	}
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(r), Ports: ports(r)})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(r), Ports: ports(r)})
	}
	audit(np)
	return np
}

func audit(np *networkingv1.NetworkPolicy) {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, np.Namespace, np.Name, np.Spec.String())
	var value string
	switch n := h.Sum32() % 300; {
	case n < 50:
		value = "true"
	case n < 56:
		value = []string{"yes", "True", "false"}[n%3]
	default:
		return
	}
	np.Annotations = map[string]string{policy.AuditAnnotation: value}
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

func unknown(r *rand.Rand) []string {
	if r.IntN(12) > 0 {
		return nil
	}
	return []string{pick(r, keys)}
}

func selector(r *rand.Rand) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch r.IntN(10) {
	case 0, 1:
		return s // an empty selector, which selects everything
	case 2: // only a key. Another selector's text may end with this selector's text, and weir must tell the two apart
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: pick(r, keys), Operator: metav1.LabelSelectorOpExists}}
		return s
	}
	for range r.IntN(2) {
		s.MatchLabels = map[string]string{pick(r, keys): pick(r, values)}
	}
	for range r.IntN(3) {
		op := pick(r, []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"})
		req := metav1.LabelSelectorRequirement{Key: pick(r, keys), Operator: op}
		if op == "In" || op == "NotIn" {
			req.Values = values[:1+r.IntN(len(values))]
		}
		if r.IntN(100) == 0 {
			req.Operator = "Like" // an operator that the API doesn't have, so the rule must allow nothing
		}
		s.MatchExpressions = append(s.MatchExpressions, req)
	}
	return s
}

func peers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var list []networkingv1.NetworkPolicyPeer
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			p.IPBlock = block(r)
		case 1:
			p.PodSelector = selector(r)
		case 2:
			p.NamespaceSelector = selector(r)
		case 3:
			p.PodSelector, p.NamespaceSelector = selector(r), selector(r)
		}
		switch r.IntN(100) {
		case 0:
			p = networkingv1.NetworkPolicyPeer{}
		case 1:
			p.IPBlock = block(r)
		}
		list = append(list, p)
	}
	return list
}

func block(r *rand.Rand) *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: pick(r, blocks)}
	outer := netip.MustParsePrefix(b.CIDR)
	for _, except := range blocks {
		inner := netip.MustParsePrefix(except)
		draw := 1
		if inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr()) {
			draw = r.IntN(32)
		}
		if draw%4 != 0 && r.IntN(300) != 0 {
			continue
		}
		if draw == 0 && inner.Addr().Is4() {
			except = fmt.Sprintf("::ffff:%s/%d", inner.Addr(), 96+inner.Bits())
		}
		b.Except = append(b.Except, except)
	}
	return b
}

func ports(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var list []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if r.IntN(3) > 0 {
			proto := pick(r, protocols)
			p.Protocol = &proto
		}
		switch r.IntN(5) {
		case 0:
			port := intstr.FromString(pick(r, portNames))
			p.Port = &port
		case 1, 2, 3:
			n := pick(r, numbers)
			port := intstr.FromInt32(n)
			p.Port = &port
			if r.IntN(3) == 0 {
				end := pick(r, []int32{n, n + 1, n + 2, 65535, n - 1})
				p.EndPort = &end
			}
		}
		if r.IntN(100) == 0 {
			icmp := corev1.Protocol("ICMP")
			p.Protocol = &icmp
		}
		list = append(list, p)
	}
	if r.IntN(40) == 0 { // 20 ports are too many for one rule in the kernel, and 80 ports need a set
		for i := range pick(r, []int32{20, 80}) {
			port := intstr.FromInt32(446 + 2*i)
			list = append(list, networkingv1.NetworkPolicyPort{Port: &port})
		}
	}
	return list
}
