package explain

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

func selecting(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

// isolatingApp returns a policy that isolates the pods with the label app=APP in direction d. The policy allows
// connections with pods that have the label app=PEER. If the parameter peer is empty, the policy allows nothing.
func isolatingApp(name, app string, d networkingv1.PolicyType, peer string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	np.Spec.PodSelector, np.Spec.PolicyTypes = *selecting(app), []networkingv1.PolicyType{d}
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: selecting(peer)}}
	switch {
	case peer == "":
	case d == networkingv1.PolicyTypeEgress:
		np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers}}
	default:
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	}
	return np
}

func shopPod(namespace, app, address string) policy.Pod {
	return policy.Pod{
		Namespace: namespace, Name: app, NodeName: "n1", Labels: map[string]string{"app": app},
		Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

func ask(t *testing.T, c Cluster, from, to string) Explanation {
	t.Helper()
	q, err := Parse(from, to, "")
	if err != nil {
		t.Fatal(err)
	}
	e, err := Explain(c, q)
	if err != nil || len(e.Paths) == 0 {
		t.Fatalf("%v: %+v", err, e)
	}
	return e
}

// TestAdviceOfLabels: if the nearest rule would allow the connection with another label of the sender, the advice is
// to give the sender this label. If the sender would then be isolated by another policy, the advice also has a new
// rule.
func TestAdviceOfLabels(t *testing.T) {
	for _, isolates := range []bool{false, true} {
		c := Cluster{}
		c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
		c.Policies = []*networkingv1.NetworkPolicy{isolatingApp("db", "db", networkingv1.PolicyTypeIngress, "api")}
		if isolates {
			c.Policies = append(c.Policies, isolatingApp("api", "api", networkingv1.PolicyTypeEgress, ""))
		}
		side := ask(t, c, "shop/web", "shop/db:80").Paths[0].Sides[1]
		if m := side.Nearest[0].Misses; len(m) != 1 || m[0].Change != "give pod shop/web the label app=api" {
			t.Fatalf("%+v", m)
		}
		if (side.Change != "") != isolates {
			t.Errorf("app=api isolates the pod: %v, and the advice is %q", isolates, side.Change)
		}
	}
}

// TestFollowedAdvice runs on random clusters. If one end drops a connection, the explanation may name labels for the
// pod at the other end. With these labels, the connection is allowed.
func TestFollowedAdvice(t *testing.T) {
	followed, other := 0, 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 13))
		state := policytest.State(r)
		for _, p := range policytest.Probes(r, state, 2) {
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: p.Port, Proto: p.Proto},
			}
			c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
			e, err := Explain(c, q)
			if err != nil || p.Port == 0 {
				continue
			}
			sides := e.Paths[0].Sides
			dropped := slices.IndexFunc(sides, func(s Side) bool { return s.Result == Dropped })
			if dropped < 0 || sides[1-dropped].Result == Dropped || len(sides[dropped].Nearest) == 0 {
				continue
			}
			misses := sides[dropped].Nearest[0].Misses
			noLabel := func(m verdict.Miss) bool { return m.Kind != verdict.MissLabel || m.Label.Key == "" }
			if slices.ContainsFunc(misses, noLabel) {
				continue
			}
			if sides[dropped].Change != "" {
				other++
				continue
			}
			c.Pods = slices.Clone(c.Pods)
			for i := range c.Pods {
				for _, m := range misses {
					if m.Object == "Pod "+c.Pods[i].Namespace+"/"+c.Pods[i].Name {
						c.Pods[i].Labels = m.Label.Apply(c.Pods[i].Labels)
					}
				}
			}
			if after, err := Explain(c, q); err != nil || after.Result != Allowed {
				t.Fatalf("seed %d: %+v: still %s after %+v: %v\n%+v", seed, p, after.Result, misses, err, after.Paths)
			}
			followed++
		}
	}
	if followed < 30 || other < 5 {
		t.Errorf("followed %d pieces of advice, and %d others were no labels", followed, other)
	}
}

// TestAdviceOfReceiversLabels: if the nearest rule would allow the connection with another label of the receiver, the
// advice is to give the receiver this label. If the receiver would then be isolated by another policy that doesn't
// allow the connection, the advice also has a new rule.
func TestAdviceOfReceiversLabels(t *testing.T) {
	for _, allowed := range []string{"", "web"} {
		c := Cluster{}
		c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
		c.Policies = []*networkingv1.NetworkPolicy{
			isolatingApp("web", "web", networkingv1.PolicyTypeEgress, "api"),
			isolatingApp("api", "api", networkingv1.PolicyTypeIngress, allowed),
		}
		side := ask(t, c, "shop/web", "shop/db:80").Paths[0].Sides[0]
		if (side.Change != "") != (allowed == "") {
			t.Errorf("the policy of app=api allows %q, and the advice is %q", allowed, side.Change)
		}
	}
}

// TestAdviceOfFaultyPolicies: if no rule of a policy counts because the policy has an error, the advice is never to
// add a rule to this policy.
func TestAdviceOfFaultyPolicies(t *testing.T) {
	const rule = "add an ingress rule from shop/web for TCP port 80 to "
	for _, tc := range []struct {
		field string
		sound []string
		want  string
	}{
		{"metadata.annotations.weir.io/audit", nil, rule + "one of these policies, or to a new policy"},
		{"spec.podSelector", nil, "correct NetworkPolicy shop/faulty, as the notes say, or " + rule + "a new policy"},
		{"spec.podSelector", []string{"a", "b"}, rule + "NetworkPolicy shop/a or shop/b, or to a new policy"},
	} {
		c := Cluster{}
		c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
		for _, name := range append(tc.sound, "faulty") {
			c.Policies = append(c.Policies, isolatingApp(name, "db", networkingv1.PolicyTypeIngress, ""))
		}
		c.Problems = []ruleset.Problem{ruleset.ProblemOfPolicy("shop/faulty", tc.field, "why")}
		change := ask(t, c, "shop/web", "shop/db:80").Paths[0].Sides[1].Change
		if !strings.HasPrefix(change, tc.want) || (tc.sound != nil) != strings.Contains(change, "No rule of shop/faulty") {
			t.Errorf("%s, %q: %q", tc.field, tc.sound, change)
		}
	}
}

// TestAddressOfSeveralPods: if several pods have the same address in their status, a note names these pods. The advice
// is to find out which pod has the address, and not to change one of the pods.
func TestAddressOfSeveralPods(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{
		shopPod("shop", "api", "10.0.0.2"), shopPod("ops", "old", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3"),
	}
	c.Policies = []*networkingv1.NetworkPolicy{isolatingApp("db", "db", networkingv1.PolicyTypeIngress, "api")}
	e := ask(t, c, "shop/api", "shop/db:80")
	sides := e.Paths[0].Sides
	if sides[0].Pod != "shop/api" || sides[1].Result != Dropped {
		t.Errorf("%+v", sides)
	}
	if !strings.Contains(strings.Join(e.Notes, " "), "10.0.0.2 is the address of several pods: ops/old, shop/api") {
		t.Errorf("%q", e.Notes)
	}
	for _, m := range sides[1].Nearest[0].Misses {
		if !strings.HasPrefix(m.Change, "find out which pod has 10.0.0.2") {
			t.Errorf("%+v", m)
		}
	}
}

// TestClosedPeer: for a connection from a closed pod, the advice says that the pod is closed, and names no ipBlock.
func TestClosedPeer(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{shopPod("shop", "db", "10.0.0.3")}
	c.Policies = []*networkingv1.NetworkPolicy{isolatingApp("db", "db", networkingv1.PolicyTypeIngress, "api")}
	c.Endpoints = []policy.Endpoint{{
		Pod:       policy.PodRef{Namespace: "shop", Name: "closed"},
		Addresses: []policy.Address{{Addr: netip.MustParseAddr("10.0.0.2")}},
	}}
	m := ask(t, c, "shop/closed", "shop/db:80").Paths[0].Sides[1].Nearest[0].Misses[0]
	if !strings.Contains(m.Why, "pod shop/closed is closed") || strings.Contains(m.Change, "ipBlock") {
		t.Errorf("%+v", m)
	}
}

// TestWorldOfAnotherFamily: a policy allows all IPv4 addresses. The explanation says why this allows no IPv6 connection
// to the world.
func TestWorldOfAnotherFamily(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{shopPod("shop", "db", "10.0.0.3")}
	c.Pods[0].Addresses = append(c.Pods[0].Addresses, netip.MustParseAddr("fd00::3"))
	np := isolatingApp("db", "db", networkingv1.PolicyTypeEgress, "api")
	np.Spec.Egress[0].To[0] = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}}
	c.Policies = []*networkingv1.NetworkPolicy{np}
	paths := ask(t, c, "shop/db", "world:80").Paths
	if len(paths) != 2 || paths[0].Result != Allowed || paths[1].Result != Dropped {
		t.Fatalf("%+v", paths)
	}
	got := paths[1].Sides[0].Nearest[0].Misses[0]
	if got.Why != "the connection is IPv6, and 0.0.0.0/0 is not" || !strings.Contains(got.Change, "the IPv6 network of") {
		t.Errorf("%+v", got)
	}
}

// TestMasqueraded: a node masquerades its pods' packets to other nodes and to the world, but not to itself.
func TestMasqueraded(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{shopPod("shop", "db", "10.0.0.3")}
	for i := range 2 {
		c.Nodes = append(c.Nodes, policy.Node{
			Name: fmt.Sprintf("n%d", i+1), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)},
		})
	}
	c.Pods = append(c.Pods, policy.Pod{
		Namespace: "shop", Name: "hosted", NodeName: "n1", HostNetwork: true, Addresses: c.Nodes[0].Addresses,
	})
	agent := c
	agent.Nodes, agent.Own = nil, c.Nodes[0].Addresses
	agent.Endpoints = []policy.Endpoint{{
		Pod: policy.PodRef{Namespace: "shop", Name: "db"}, Enforcement: conf.Strict,
		Addresses: []policy.Address{{Addr: c.Pods[0].Addresses[0]}},
	}}
	for _, tc := range []struct {
		of   Cluster
		to   string
		want bool
	}{
		{c, "192.0.2.1:22", false},
		{c, "192.0.2.2:22", true},
		{c, "shop/hosted:22", false},
		{c, "198.51.100.1:22", true},
		{agent, "192.0.2.1:22", false},
		{agent, "192.0.2.2:22", true},
	} {
		e := ask(t, tc.of, "shop/db", tc.to)
		got := slices.ContainsFunc(e.Notes, func(n string) bool { return strings.Contains(n, "weir masquerades") })
		if got != tc.want {
			t.Errorf("%s: masqueraded: %v, want %v; notes %q", tc.to, got, tc.want, e.Notes)
		}
	}
}

func TestOtherAttachments(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
	for _, list := range [][]string{{"10.0.0.3", "fd00::3"}, {"10.0.1.3", "fd00:1::3"}} {
		e := policy.Endpoint{Pod: policy.PodRef{Namespace: "shop", Name: "db"}, Enforcement: conf.Strict}
		for _, a := range list {
			e.Addresses = append(e.Addresses, policy.Address{Addr: netip.MustParseAddr(a)})
		}
		c.Endpoints = append(c.Endpoints, e)
	}
	notes := strings.Join(ask(t, c, "shop/web", "shop/db:80").Notes, "\n")
	if notes != "shop/db also has 10.0.1.3, which this answer leaves out: ask about the address instead of the pod" {
		t.Errorf("%q", notes)
	}
}

// TestAdviceOfExcepts: for an address in an except, the advice is to add an ipBlock with the address, and not to make
// the except smaller. A smaller except would also allow other hosts.
func TestAdviceOfExcepts(t *testing.T) {
	np := isolatingApp("db", "db", networkingv1.PolicyTypeIngress, "")
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
		IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"0.0.0.0/1", "128.0.0.0/1"}},
	}}}}
	var c Cluster
	c.Pods = []policy.Pod{shopPod("shop", "db", "10.0.0.2")}
	c.Policies = []*networkingv1.NetworkPolicy{np}
	for from, want := range map[string]string{
		"192.0.2.7": "add an ipBlock with 192.0.2.7 to the rule",
		"world":     "add an ipBlock with the network of these hosts to the rule",
	} {
		near := ask(t, c, from, "shop/db:80").Paths[0].Sides[1].Nearest
		if len(near) != 1 || len(near[0].Misses) != 1 || near[0].Misses[0].Change != want {
			t.Errorf("%s: %+v", from, near)
		}
	}
}

// TestAdviceOfExcludedLabels: if a selector excludes a label of the pod or of its namespace, the advice is to add a
// peer for this pod to the rule. If the labels were changed instead, other policies could also apply to the pod.
func TestAdviceOfExcludedLabels(t *testing.T) {
	type expressions = []metav1.LabelSelectorRequirement
	notIn := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}}
	for name, from := range map[string]networkingv1.NetworkPolicyPeer{
		"NotIn": {PodSelector: &metav1.LabelSelector{MatchExpressions: expressions{notIn}}},
		"NotIn and Exists": {PodSelector: &metav1.LabelSelector{
			MatchExpressions: expressions{notIn, {Key: "app", Operator: metav1.LabelSelectorOpExists}},
		}},
		"DoesNotExist": {PodSelector: &metav1.LabelSelector{
			MatchExpressions: expressions{{Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist}},
		}},
		"NotIn and another label": {PodSelector: &metav1.LabelSelector{
			MatchLabels: map[string]string{"team": "a"}, MatchExpressions: expressions{notIn},
		}},
		"the namespace's name": {NamespaceSelector: &metav1.LabelSelector{MatchExpressions: expressions{{
			Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"shop"},
		}}}},
	} {
		np := isolatingApp("db", "db", networkingv1.PolicyTypeIngress, "")
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{from}}}
		var c Cluster
		c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
		c.Policies = []*networkingv1.NetworkPolicy{np}
		want := "add a peer for pod shop/web to the rule, with a namespaceSelector with kubernetes.io/metadata.name: shop " +
			"and a podSelector with labels of the pod"
		for _, m := range ask(t, c, "shop/web", "shop/db:80").Paths[0].Sides[1].Nearest[0].Misses {
			if m.Change != want {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if from.NamespaceSelector == nil {
			continue
		}
		c.Pods[0].Labels = nil
		m := ask(t, c, "shop/web", "shop/db:80").Paths[0].Sides[1].Nearest[0].Misses[0]
		if !strings.HasSuffix(m.Change, "so the peer matches all pods of its namespace") {
			t.Errorf("a pod without labels: %+v", m)
		}
	}
}
