package client

import (
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
	"github.com/weir-net/weir/policy/ruleset"
)

func small() *expected {
	x := &expected{
		engine: policy.NewEngine(""), byNode: map[string][]expectedPod{}, policed: map[string]bool{"ns": true},
		at: enforced.Position{Pods: 5, Namespaces: 5, Nodes: 5, Policies: 5},
	}
	d := policy.NewDelta()
	d.Namespaces["ns"] = &policy.Namespace{Name: "ns"}
	for name, address := range map[string]string{"web": "10.0.1.1", "client": "10.0.2.1"} {
		node := map[string]string{"web": "n1", "client": "n2"}[name]
		p := policy.Pod{
			Namespace: "ns", Name: name, UID: name, NodeName: node, Labels: map[string]string{"app": name},
			Addresses: []netip.Addr{netip.MustParseAddr(address)},
		}
		d.Pods[policy.Name{Namespace: "ns", Name: name}] = []*policy.Pod{&p}
		x.byNode[node] = append(x.byNode[node], expectedPod{Pod: p})
	}
	allow := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "allow"}}
	allow.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
	allow.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
	}}}}
	d.Policies[policy.Name{Namespace: "ns", Name: "allow"}] = []*networkingv1.NetworkPolicy{allow}
	x.engine.SetNodes([]policy.Node{
		{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}},
		{Name: "n2", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")}},
	})
	x.engine.Apply(d)
	return x
}

func answerOf(x *expected, q enforced.Question) enforced.Answer {
	a := enforced.Answer{At: x.at, Endpoints: []policy.Endpoint{{
		ID: "c:eth0", Pod: policy.PodRef{Namespace: "ns", Name: "web", UID: "web"},
		Addresses: []policy.Address{{Addr: netip.MustParseAddr("10.0.1.1")}},
	}}}
	a.ShortForm = x.on("n1", a.Endpoints, q)
	return a
}

// TestLacks: lacks names a part that is missing or wrong in a node's answer, and returns "" if the answer is right.
func TestLacks(t *testing.T) {
	client := small().byNode["n2"][0]
	peers := goal{pod: &client}
	both := func(a *enforced.Answer, change func(*enforced.Class)) {
		for name, c := range a.ShortForm.Classes {
			if c.Chain != "" {
				c.Policies, c.Sets = append([]string{}, c.Policies...), append([]enforced.Set{}, c.Sets...)
				change(&c)
				a.ShortForm.Classes[name] = c
			}
		}
	}
	for what, c := range map[string]struct {
		goal   goal
		change func(*enforced.Answer)
		want   string // empty if the answer has everything
	}{
		"right": {goal{namespace: "ns"}, func(*enforced.Answer) {}, ""},
		"newer": {goal{namespace: "ns"}, func(a *enforced.Answer) { a.At.Pods = 9 }, ""},
		"older": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { a.At.Policies = 4 },
			"the agent has not seen the newest objects yet: networkpolicies up to version 4 of 5",
		},
		"faulty": {
			goal{namespace: "ns"}, func(a *enforced.Answer) { a.Faults = []string{"kernel: no room"} }, "kernel: no room",
		},
		"no attachment": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { a.Endpoints = nil },
			"the node has no attachment of the pod ns/web (UID web)",
		},
		"another pod's attachment": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { a.Endpoints[0].Pod.UID = "old" },
			"the node has no attachment of the pod ns/web (UID web)",
		},
		"closed": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { a.ShortForm.Pods[0].Ingress = "" },
			"the pod ns/web is in no ingress class, so it is closed",
		},
		"open": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { both(a, func(c *enforced.Class) { c.Policies = nil }) },
			"ingress of the pod ns/web: it is under no policy, and should be under ns/allow",
		},
		"old rules": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { both(a, func(c *enforced.Class) { c.Chain = "WEIR-IN-OLD" }) },
			"ingress of the pod ns/web: ns/allow has other rules (WEIR-IN-OLD) than its object now means",
		},
		"a problem": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) {
				both(a, func(c *enforced.Class) { c.Chain = "WEIR-IN-OLD" })
				a.Problems = []ruleset.Problem{{Object: "NetworkPolicy ns/allow", Field: "spec", Message: "no room"}}
			},
			"ingress of the pod ns/web: a policy can't be enforced as written: NetworkPolicy ns/allow: spec: no room",
		},
		"another peer": {
			goal{namespace: "ns"},
			func(a *enforced.Answer) { both(a, func(c *enforced.Class) { c.Sets[0].Digest = "x" }) },
			"ingress of the pod ns/web: the set weir-sel-",
		},
		"right about the peer": {peers, func(*enforced.Answer) {}, ""},
		"lacks the peer": {
			peers, func(a *enforced.Answer) { both(a, func(c *enforced.Class) { c.Sets = nil }) },
			"doesn't have the pod's addresses yet",
		},
		"has a peer too many": {peers, func(a *enforced.Answer) {
			both(a, func(c *enforced.Class) { c.Sets = append(c.Sets, enforced.Set{Name: "weir-sel-X", Entries: 1}) })
		}, "the set weir-sel-X still has the pod's addresses"},
	} {
		x := small()
		q := c.goal.question(x, "n1")
		a := answerOf(x, q)
		c.change(&a)
		got := c.goal.lacks(x, "n1", q, a)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}
