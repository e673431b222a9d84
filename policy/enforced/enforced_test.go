package enforced_test

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
	"github.com/weir-net/weir/policy/policytest"
)

// TestOfEngine: Of returns the same for the ruleset of an engine as for the ruleset of Compile.
func TestOfEngine(t *testing.T) {
	pods := 0
	for seed := range uint64(500) {
		s := policytest.State(rand.New(rand.NewPCG(seed, 7)))
		s.Refused, s.Workloads, s.Node = nil, nil, ""
		e := policy.NewEngine("")
		e.SetNodes(s.Nodes)
		e.Apply(policy.Difference(policy.Objects{}, s.Objects))
		e.SetEndpoints(s.Endpoints)
		got, want := enforced.Of(e.Ruleset(), s.Endpoints, nil), enforced.Of(policy.Compile(s), s.Endpoints, nil)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
		}
		pods += len(got.Pods)
	}
	if pods < 500 {
		t.Errorf("%d pods", pods)
	}
}

// TestOf: a pod's class changes if the pod's policies, these policies' rules or the addresses of the rules' peers
// change. Otherwise the class stays the same.
func TestOf(t *testing.T) {
	pod := func(name, address, node string) policy.Pod {
		return policy.Pod{
			Namespace: "ns", Name: name, UID: name, Labels: map[string]string{"app": name}, NodeName: node,
			Addresses: []netip.Addr{netip.MustParseAddr(address)},
		}
	}
	s := policy.State{Node: "n1"}
	s.Nodes = []policy.Node{
		{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
		{Name: "n2", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}},
	}
	s.Namespaces = []policy.Namespace{{Name: "ns"}}
	s.Pods = []policy.Pod{pod("web", "10.0.0.1", "n1"), pod("client", "10.0.1.1", "n2"), pod("other", "10.0.1.2", "n2")}
	s.Endpoints = []policy.Endpoint{{
		ID: "c:eth0", Pod: policy.PodRef{Namespace: "ns", Name: "web", UID: "web"},
		Addresses: []policy.Address{{Addr: netip.MustParseAddr("10.0.0.1")}},
	}}
	allow := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "allow"}}
	selects := func(app string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	allow.Spec.PodSelector = *selects("web")
	allow.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{{PodSelector: selects("client")}},
	}}
	s.Policies = []*networkingv1.NetworkPolicy{allow}
	class := func(s policy.State) enforced.Class {
		h := enforced.Of(policy.Compile(s), s.Endpoints, nil)
		return h.Classes[h.Pods[0].Ingress]
	}
	was := class(s)
	if len(was.Sets) != 1 || was.Sets[0].Entries != 1 || was.Policies[0] != "ns/allow" {
		t.Fatalf("%+v", was)
	}
	for what, change := range map[string]struct {
		of    func(*policy.State)
		equal bool
	}{
		"another pod's label":  {func(s *policy.State) { s.Pods[2].Labels = map[string]string{"app": "x"} }, true},
		"a pod becomes a peer": {func(s *policy.State) { s.Pods[2].Labels = map[string]string{"app": "client"} }, false},
		"a peer's address":     {func(s *policy.State) { s.Pods[1].Addresses[0] = netip.MustParseAddr("10.0.1.3") }, false},
		"a peer is gone":       {func(s *policy.State) { s.Pods = s.Pods[:1] }, false},
		"other rules of a policy": {func(s *policy.State) {
			s.Policies[0].Spec.Ingress[0].From[0].PodSelector = selects("x")
		}, false},
		"no policy": {func(s *policy.State) { s.Policies = nil }, false},
		"a policy for others": {func(s *policy.State) {
			p := allow.DeepCopy()
			p.Name, p.Spec.PodSelector = "more", *selects("other")
			s.Policies = append(s.Policies, p)
		}, true},
		"one more policy": {func(s *policy.State) {
			p := allow.DeepCopy()
			p.Name = "more"
			s.Policies = append(s.Policies, p)
		}, false},
	} {
		now := s
		now.Pods = nil
		for _, p := range s.Pods {
			p.Labels, p.Addresses = maps.Clone(p.Labels), append([]netip.Addr{}, p.Addresses...)
			now.Pods = append(now.Pods, p)
		}
		now.Policies = []*networkingv1.NetworkPolicy{allow.DeepCopy()}
		change.of(&now)
		if got := class(now); got.Equal(was) != change.equal {
			t.Errorf("%s: equal %v, want %v: %+v", what, !change.equal, change.equal, got)
		}
	}
	closed := s
	closed.Pods = s.Pods[1:]
	if h := enforced.Of(policy.Compile(closed), s.Endpoints, nil); h.Pods[0].Ingress != "" {
		t.Errorf("a pod that nobody knows is in %q", h.Pods[0].Ingress)
	}
	h := enforced.Of(policy.Compile(s), s.Endpoints, []netip.Addr{netip.MustParseAddr("10.0.1.2")})
	if sets := h.Classes[h.Pods[0].Ingress].Sets; sets[0].Entries != 0 || sets[0].Digest != "" {
		t.Errorf("the set has other entries than the peer's: %+v", sets)
	}
}
