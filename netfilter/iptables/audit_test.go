package iptables

import (
	"math/rand/v2"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
)

// TestAuditingDropsNothing: a policy that comes as an audited one, changes and goes again drops no packet at any step
// of the plans.
func TestAuditingDropsNothing(t *testing.T) {
	var open policy.State
	for seed := uint64(0); len(open.Endpoints) < 3; seed++ {
		open = policytest.State(rand.New(rand.NewPCG(seed, 1)))
	}
	open.Policies, open.Pods = nil, open.Pods[:len(open.Pods):len(open.Pods)]
	audited := func(spec networkingv1.NetworkPolicySpec) policy.State {
		s := open
		for _, ns := range open.Namespaces {
			s.Policies = append(s.Policies, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: ns.Name, Name: "trial", Annotations: map[string]string{policy.AuditAnnotation: "true"},
				},
				Spec: spec,
			})
		}
		return s
	}
	none := networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"}}
	some := none
	some.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{}},
	}}}
	m := newModel(t)
	m.plan(makePlan(m.state, lowerOnto(m.state, policy.Compile(open))), func(string) {})
	before := simulator(t, policy.Compile(open))
	for i, s := range []policy.State{audited(none), audited(some), audited(none), open} {
		p := makePlan(m.state, lowerOnto(m.state, policy.Compile(s)))
		if p.empty() {
			t.Fatalf("step %d changes nothing", i)
		}
		passed := 0
		m.plan(p, func(step string) {
			for _, packet := range policytest.Packets(open) {
				if before.Allows(packet) && !m.allowsWith(0, packet) {
					t.Fatalf("change %d: after %q %+v is dropped", i, step, packet)
				} else if before.Allows(packet) {
					passed++
				}
			}
		})
		if passed == 0 {
			t.Error("no packet passes")
		}
	}
}
