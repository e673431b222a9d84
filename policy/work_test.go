package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func manySets(ns, sets int) *networkingv1.NetworkPolicy {
	return hostilePolicy(ns, 0, sets, func(n int) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{
			NamespaceSelector: &metav1.LabelSelector{},
			PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: fmt.Sprint("no", n), Operator: metav1.LabelSelectorOpDoesNotExist},
			}},
		}
	})
}

func policies(all ...*networkingv1.NetworkPolicy) *policy.Delta {
	d := policy.NewDelta()
	for _, np := range all {
		d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
	}
	return d
}

func ruled(r ruleset.Ruleset, name string) (n int) {
	for _, c := range r.Chains {
		for _, rule := range c.Rules {
			if strings.HasPrefix(rule.Comment, "weir: "+name+" ") {
				n++
			}
		}
	}
	return n
}

// TestSmallPoliciesComeWhole: the next slice has all sets of a small policy, even if the slice's time is over at once.
func TestSmallPoliciesComeWhole(t *testing.T) {
	e, all := city(200)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(hostilePolicy(1, 0, 4, func(n int) networkingv1.NetworkPolicyPeer {
		app := map[string]string{"app": fmt.Sprint("a", n)}
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: app}}
	})))
	if r := e.Slice(func() bool { return true }); ruled(r, "ns1/hostile0") != 4 || e.HasSlice() {
		t.Errorf("the slice has %d rules of the policy, and another slice: %v", ruled(r, "ns1/hostile0"), e.HasSlice())
	}
}

// TestSmallNamespacesComeFirst: while one policy needs many slices, a new policy of another namespace has rules in
// the next slice.
func TestSmallNamespacesComeFirst(t *testing.T) {
	e, all := city(500)
	e.Apply(all)
	e.Ruleset()
	large := manySets(1, 100)
	other := func(i int) *networkingv1.NetworkPolicy {
		np := cityPolicy(2, i)
		np.Name, np.Spec.PodSelector = fmt.Sprint("other", i), metav1.LabelSelector{}
		np.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: &metav1.LabelSelector{},
			PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{fmt.Sprint("a", i)}},
			}},
		}}
		return np
	}
	e.Apply(policies(large, other(0)))
	slicesSoFar, before := 0, 0
	for ; e.Changed(); slicesSoFar++ {
		r := e.SliceOf(policy.SliceWork)
		if n := ruled(r, "ns2/other"+fmt.Sprint(slicesSoFar)); slicesSoFar < 5 && n == 0 {
			t.Fatalf("slice %d doesn't have the policy that came before it", slicesSoFar)
		}
		n := ruled(r, "ns1/hostile0")
		if n < before {
			t.Errorf("slice %d has %d rules of the large policy, the slice before it %d", slicesSoFar, n, before)
		}
		if before = n; slicesSoFar < 4 {
			e.Apply(policies(other(slicesSoFar + 1)))
		}
	}
	if slicesSoFar < 20 {
		t.Errorf("the large policy needs only %d slices", slicesSoFar)
	}
	if before != 100 {
		t.Errorf("the large policy has %d rules in the end", before)
	}
}

// TestLargeSetsEnd: a set becomes complete even if its rounded size exceeds its size by more entries than one slice
// (limited piece of work) makes.
func TestLargeSetsEnd(t *testing.T) {
	e, all := city(200) // a set of 200 entries has the rounded size 208
	e.SetLimits(policy.LimitsOf(1<<15, 1<<13, 1<<20, 1003))
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(hostilePolicy(1, 0, 1, func(int) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}
	})))
	var last ruleset.Ruleset
	for n := 0; e.Changed(); n++ {
		if n > 200 {
			t.Fatal("the slices don't end")
		}
		last = e.SliceOf(4)
	}
	if ruled(last, "ns1/hostile0") != 1 {
		t.Error("the policy's rule is missing")
	}
}

// TestLargeSetsBesideOthers: a rule needs two sets. While one set is made in pieces, the other set is made too,
// whatever the size of the other set is.
func TestLargeSetsBesideOthers(t *testing.T) {
	port := intstr.FromString("http")
	np := cityPolicy(1, 0)
	np.Name, np.Spec.PodSelector = "hostile0", metav1.LabelSelector{}
	np.Spec.PolicyTypes, np.Spec.Ingress = []networkingv1.PolicyType{"Egress"}, nil
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{
		To:    []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
	}}
	for _, named := range []int{500, 990, 1020, 1500} {
		e, all := city(3000)
		for _, pods := range all.Pods {
			if named--; named >= 0 {
				pods[0].Ports = []policy.NamedPort{{Name: "http", Proto: ruleset.TCP, Number: 80}}
			}
		}
		e.Apply(all)
		e.Ruleset()
		e.Apply(policies(np))
		var last ruleset.Ruleset
		for n := 0; e.Changed(); n++ {
			if n > 200 {
				t.Fatal("the slices don't end")
			}
			last = e.SliceOf(policy.SliceWork)
		}
		if ruled(last, "ns1/hostile0") != 1 {
			t.Error("the policy's rule is missing")
		}
	}
}

// TestLongWaitsAreReported: if a policy's sets still aren't complete after many slices, the ruleset has a problem
// about this policy. The problem ends once the sets are complete.
func TestLongWaitsAreReported(t *testing.T) {
	e, all := city(1000)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(manySets(1, 100)))
	waits := func(r ruleset.Ruleset) bool {
		return slices.ContainsFunc(r.Problems, func(p ruleset.Problem) bool {
			return p.Object == "NetworkPolicy ns1/hostile0" && strings.Contains(p.Message, "not all made yet")
		})
	}
	last, reported := e.SliceOf(100), false
	for n := 0; n < 20_000 && !reported; n++ {
		last = e.SliceOf(0) // as if other namespaces had used up the slice's work
		reported = waits(last)
	}
	for n := 0; e.Changed(); n++ {
		if n > 1000 {
			t.Fatal("the slices don't end")
		}
		last = e.SliceOf(policy.SliceWork)
	}
	if !reported {
		t.Error("the long wait isn't reported")
	}
	if waits(last) {
		t.Error("the problem stays after all sets are made")
	}
}
