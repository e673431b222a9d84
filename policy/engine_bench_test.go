package policy_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

func city(pods int) (*policy.Engine, *policy.Delta) {
	d, nodes := policy.NewDelta(), cityNodes(pods)
	var endpoints []policy.Endpoint
	for i := range pods {
		ns, at := i/100, i%100
		on := 1 + (ns+at)%(len(nodes)-1)
		if at == 0 && ns < 100 {
			on = 0
		}
		p := cityPod(ns, at, on)
		d.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{p}
		if on == 0 {
			endpoints = append(endpoints, policy.Endpoint{
				ID: p.Namespace + p.Name, Pod: policy.PodRef{Namespace: p.Namespace, Name: p.Name}, Enforcement: conf.Strict,
				Addresses: []policy.Address{{Addr: p.Addresses[0], Subnet: nodes[0].PodCIDRs[0]}},
			})
		}
	}
	for ns := range (pods + 99) / 100 {
		name := fmt.Sprint("ns", ns)
		d.Namespaces[name] = &policy.Namespace{Name: name, Labels: map[string]string{"team": fmt.Sprint(ns % 50)}}
		for i := range 10 {
			np := cityPolicy(ns, i)
			d.Policies[policy.Name{Namespace: name, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
		}
	}
	e := policy.NewEngine("n0")
	e.SetNodes(nodes)
	e.SetEndpoints(endpoints)
	return e, d
}

func cityPod(ns, at, on int) *policy.Pod {
	return &policy.Pod{
		Namespace: fmt.Sprint("ns", ns), Name: fmt.Sprint("p", at), NodeName: fmt.Sprint("n", on),
		Labels: map[string]string{
			"app": fmt.Sprint("a", at%10), "pod-template-hash": fmt.Sprint("h", at%10), "team": fmt.Sprint("t", ns),
		},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(on >> 8), byte(on), byte(1 + (ns+at*7)%250)})},
	}
}

func cityPolicy(ns, i int) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(8080)
	app := func(n int) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", n%10)}}
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns", ns), Name: fmt.Sprint("np", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *app(i),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: app(i + 1)},
					{PodSelector: app(i + 2)},
					{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(ns % 50)}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.16.%d.0/24", i)}},
				},
			}},
		},
	}
}

func one(p *policy.Pod) *policy.Delta {
	d := policy.NewDelta()
	d.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{p}
	return d
}

func BenchmarkEngine(b *testing.B) {
	for _, pods := range []int{1000, 10_000, 100_000} {
		e, all := city(pods)
		b.Run(fmt.Sprintf("start/pods=%d", pods), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e, all := city(pods)
				e.Apply(all)
				e.Ruleset()
			}
		})
		e.Apply(all)
		e.Ruleset()
		last := pods/100 - 1
		event := func(name string, make func(i int) *policy.Delta) {
			b.Run(fmt.Sprintf("%s/pods=%d", name, pods), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					i++
					e.Apply(make(i))
					e.Ruleset()
				}
			})
		}
		event("pod of no concern", func(i int) *policy.Delta {
			p := cityPod(last, 50, 5)
			p.UID, p.Labels["team"] = fmt.Sprint(i), "other"
			return one(p)
		})
		event("peer elsewhere", func(i int) *policy.Delta {
			p := cityPod(3, 51, 5)
			p.Labels["app"] = fmt.Sprint("a", i%10)
			return one(p)
		})
		event("policy of no concern", func(i int) *policy.Delta {
			d, np := policy.NewDelta(), cityPolicy(last, i%10)
			d.Policies[policy.Name{Namespace: np.Namespace, Name: "other"}] = []*networkingv1.NetworkPolicy{np}
			return d
		})
		event("policy of a local pod", func(i int) *policy.Delta {
			d, np := policy.NewDelta(), cityPolicy(3, i%10)
			np.Name = "other"
			d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			return d
		})
		event("policy with a new named port", func(i int) *policy.Delta {
			d, np := policy.NewDelta(), cityPolicy(3, i%10)
			np.Name, np.Spec.PolicyTypes = "other", []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
			port := intstr.FromString(fmt.Sprint("p", i))
			np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}}
			d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			return d
		})
		nodes := cityNodes(pods)
		b.Run(fmt.Sprintf("new Node/pods=%d", pods), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				comeAndGo(e, nodes)
			}
		})
	}
}

func cityNodes(pods int) (nodes []policy.Node) {
	for i := range (pods + 99) / 100 {
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		nodes = append(nodes, policy.Node{Name: fmt.Sprint("n", i), PodCIDRs: []netip.Prefix{network}})
	}
	return nodes
}

func comeAndGo(e *policy.Engine, nodes []policy.Node) {
	network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, 255, 0}), 24)
	e.SetNodes(append(slices.Clip(nodes), policy.Node{Name: "new", PodCIDRs: []netip.Prefix{network}}))
	e.Ruleset()
	e.SetNodes(nodes)
	e.Ruleset()
}

// TestNewNodesCostNoPods: adding and removing a Node without pods doesn't take time for each pod of the other Nodes.
// With 50,000 pods, it takes at most ten times as long as with 1,000.
func TestNewNodesCostNoPods(t *testing.T) {
	const few, many = 1000, 50_000
	cost := func(pods int) time.Duration {
		e, _ := city(few)
		d := policy.NewDelta()
		for i := range pods {
			p := cityPod(i/100, i%100, 1+i%9)
			d.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{p}
		}
		e.Apply(d)
		e.Ruleset()
		nodes, least := cityNodes(few), time.Duration(math.MaxInt64)
		for range 30 { // the shortest time is the one that other programs disturb least
			began := time.Now()
			comeAndGo(e, nodes)
			least = min(least, time.Since(began))
		}
		return least
	}
	if a, b := cost(few), cost(many); b > 10*a {
		t.Errorf("with %d pods it takes %s, and with %d %s", few, a, many, b)
	} else {
		t.Logf("with %d pods it takes %s, and with %d %s", few, a, many, b)
	}
}

// BenchmarkEqualPeers changes the labels of another node's pod. A pod of this node is under 1 or 1,000 policies, which
// all have the same peer. After each change, the engine must find out whether the other node's pod matches this peer.
func BenchmarkEqualPeers(b *testing.B) {
	values := make([]string, 100)
	for i := range values {
		values[i] = fmt.Sprint("v", i)
	}
	for _, policies := range []int{1, 1000} {
		b.Run(fmt.Sprintf("policies=%d", policies), func(b *testing.B) {
			e, d := city(1000)
			for i := range policies {
				np := cityPolicy(3, 0)
				np.Name = fmt.Sprint("equal", i)
				np.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{
					MatchExpressions: []metav1.LabelSelectorRequirement{
						{Key: "color", Operator: metav1.LabelSelectorOpNotIn, Values: values},
					},
				}}}
				d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			}
			e.Apply(d)
			paint := func(i int) (entries int) {
				p := cityPod(3, 51, 5)
				p.Addresses[0] = netip.MustParseAddr("10.0.5.252")   // no other pod has this address
				p.Labels["color"] = fmt.Sprint("v", i%2*100+i/2%100) // the pod is a peer only if i is odd
				e.Apply(one(p))
				for _, s := range e.Ruleset().Sets {
					entries += s.Entries.Len()
				}
				return entries
			}
			if paint(0)+1 != paint(1) {
				b.Fatal("the label doesn't decide whether the pod is a peer")
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				paint(i)
			}
		})
	}
}

// similar has functions that return peers. The selectors of a function's peers differ in one requirement. In some cases
// the selectors have another requirement, or their namespaceSelector, in common.
var similar = map[string]func(i int) networkingv1.NetworkPolicyPeer{
	"equal NotIn, other NotIn": func(i int) networkingv1.NetworkPolicyPeer {
		return expressions(notOneOf("color", 0, 100), notOneOf("app", i, 100))
	},
	"equal In, other In": func(i int) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{
			MatchLabels: map[string]string{"app": "a1", "size": fmt.Sprint("s", i)},
		}}
	},
	"equal In, other NotIn": func(i int) networkingv1.NetworkPolicyPeer {
		peer := expressions(notOneOf("color", 0, 100), notOneOf("size", i, 100))
		peer.PodSelector.MatchLabels = map[string]string{"app": "a1"}
		return peer
	},
	"equal namespaceSelector, other NotIn": func(i int) networkingv1.NetworkPolicyPeer {
		peer := expressions(notOneOf("app", i, 100))
		peer.NamespaceSelector = expressions(notOneOf("team", 0, 100)).PodSelector
		return peer
	},
	"other NotIn": func(i int) networkingv1.NetworkPolicyPeer {
		peer := expressions(notOneOf("color", i, 98))
		values := &peer.PodSelector.MatchExpressions[0].Values
		*values = append(*values, "v0-1", "v0-2")
		return peer
	},
	"other NotIn, all match": func(i int) networkingv1.NetworkPolicyPeer { return expressions(notOneOf("size", i, 100)) },
	"other In": func(i int) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{
			MatchLabels: map[string]string{"size": fmt.Sprint("s", i)},
		}}
	},
}

func expressions(all ...metav1.LabelSelectorRequirement) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchExpressions: all}}
}

func notOneOf(key string, i, values int) metav1.LabelSelectorRequirement {
	r := metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn}
	for v := range values {
		r.Values = append(r.Values, fmt.Sprintf("v%d-%d", i, v))
	}
	return r
}

// BenchmarkSimilarPeers changes the labels of another node's pod. The engine must then match the pod with the peers of
// 1,000 policies of a pod of this node. No peer matches, except in the case "other NotIn, all match".
func BenchmarkSimilarPeers(b *testing.B) {
	for name, peer := range similar {
		b.Run(name, func(b *testing.B) {
			e, d := city(1000)
			d.Namespaces["ns3"].Labels["team"] = "v0-1"
			for i := range 1000 {
				np := cityPolicy(3, 0)
				np.Name = fmt.Sprint("similar", i)
				np.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{peer(i)}
				d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			}
			e.Apply(d)
			paint := func(i int) {
				p := cityPod(3, 51, 5)
				p.Addresses[0] = netip.MustParseAddr("10.0.5.252") // no other pod has this address
				p.Labels["color"] = fmt.Sprint("v0-", 1+i%2)
				e.Apply(one(p))
				e.Ruleset()
			}
			paint(1) // before the measurement: in some cases, peers match the pod while it has no color
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				paint(i)
			}
		})
	}
}
