package iptables

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

// TestAuditingDropsNothing: an audited policy is added, changed and deleted. No step of these changes drops a packet
// that passes without the policy.
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
	labelled := func(pods int) policy.State { // a state in which the audited policy selects this many pods
		spec := none
		spec.PodSelector.MatchLabels = map[string]string{"trial": "yes"}
		s := audited(spec)
		s.Pods = slices.Clone(open.Pods)
		for i := range s.Pods[:pods] {
			s.Pods[i].Labels = maps.Clone(s.Pods[i].Labels)
			if s.Pods[i].Labels == nil {
				s.Pods[i].Labels = map[string]string{}
			}
			s.Pods[i].Labels["trial"] = "yes"
		}
		return s
	}
	states := []policy.State{
		audited(none), audited(some), audited(none), open, labelled(3), labelled(1), labelled(3), open,
	}
	before := simulator(t, policy.Compile(open))
	for _, plain := range []bool{false, true} {
		m := newModel(t)
		onto := func(s policy.State) *lowered {
			if plain {
				return lower(policy.Compile(s))
			}
			return lowerOnto(m.state, policy.Compile(s))
		}
		m.plan(makePlan(m.state, onto(open)), func(string) {})
		for i, s := range states {
			p := makePlan(m.state, onto(s))
			if p.empty() {
				t.Fatalf("step %d changes nothing", i)
			}
			passed := 0
			m.plan(p, func(step string) {
				for _, packet := range policytest.Packets(open) {
					if before.Allows(packet) && !m.allowsWith(0, packet) {
						t.Fatalf("change %d (without numbers: %v): after %q %+v is dropped", i, plain, step, packet)
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
}

// TestAuditedClassesStand: KeepClosed accepts chains with rules of audited policies as complete. If a class's rule that
// logs would-drops is missing, the chain is incomplete, and KeepClosed closes the family (with a ruleset without
// classes).
func TestAuditedClassesStand(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	golden.Each(t, "../..", func(t *testing.T, name string, s policy.State) {
		if name != "audit" {
			return
		}
		want, closed := policy.Compile(s), policy.Compile(policy.State{Endpoints: s.Endpoints})
		audited := want.Classes[slices.IndexFunc(want.Classes, func(c ruleset.Class) bool { return len(c.Audited) > 0 })]
		mustApply(t, driver(t, NFT), want, netfilter.All)
		keep := func(changes bool) {
			t.Helper()
			fell, err := driver(t, NFT).KeepClosed(t.Context(), closed)
			unprintable := errors.As(err, new(*netfilter.UnknownError))
			if err != nil && !unprintable || len(fell) > 0 != changes {
				t.Errorf("closed in %v, %v; want %v\n%s", fell, err, changes, listing(t))
			}
		}
		keep(false)
		const foreign = "ip mangle WEIR-TEST"
		nodetest.Run(t, "nft", "add chain "+foreign)
		nodetest.Run(t, "nft", "add rule "+foreign+" ip saddr . ip daddr { 192.0.2.1 . 192.0.2.2 } numgen inc mod 3 0 accept")
		keep(false)
		nodetest.Run(t, "nft", "delete chain "+foreign)
		rules := strings.Fields(nodetest.Run(t, "sh", "-c", "iptables -t mangle -S "+audited.Chain+" | grep -c -- '^-A'"))
		last, err := strconv.Atoi(rules[0])
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			last--
			nodetest.Run(t, "iptables", "-t", "mangle", "-D", audited.Chain, strconv.Itoa(last))
		}
		keep(true)
	})
}
