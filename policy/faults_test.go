package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/golden"
)

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: lab}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.88.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.88.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: free, namespace: lab}
status: {podIP: 10.88.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: peer, containers: []}
status: {podIP: 10.88.1.5}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 80}]
`

func faultNode(name, address string, cidrs ...string) policy.Node {
	n := policy.Node{Name: name}
	if address != "" {
		n.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func faultPod(namespace, name, node, address string) policy.Pod {
	return policy.Pod{
		Namespace: namespace,
		Name:      name,
		NodeName:  node,
		Labels:    map[string]string{"app": "client"},
		Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

// TestFaults: an object with an error never makes the rules allow additional packets. The reported problems name the
// object and the field.
func TestFaults(t *testing.T) {
	const (
		pass   = "client>web:tcp:80 web>client:tcp:9 web>free:tcp:80 client>free:tcp:80 192.0.2.9>free:tcp:80"
		denied = "client>web:tcp:81 client>db:tcp:80 free>web:tcp:80 free>db:tcp:80 192.0.2.9>web:tcp:80"
	)
	for _, tc := range []struct {
		name     string
		more     string        // another NetworkPolicy, without its kind
		nodes    []policy.Node // besides the Nodes self and peer
		pods     []policy.Pod  // besides the pods of the manifests
		unread   []ruleset.Problem
		problems []string // how the reported problems begin
		pass     string   // packets that must pass, besides the constant pass
		cut      string   // packets that pass without the error, and must not pass with it
		denied   string   // packets that must not pass, besides the constant denied
	}{
		{name: "none"},
		{name: "a Node without podCIDR", nodes: []policy.Node{faultNode("new", "192.0.2.13")}},
		{
			name: "a Node with a podCIDR that the source can't read", nodes: []policy.Node{faultNode("new", "192.0.2.13")},
			unread:   []ruleset.Problem{{Object: "Node new", Field: "spec.podCIDRs[0]", Message: "is no CIDR"}},
			problems: []string{"Node new: spec.podCIDRs[0]: is no CIDR"},
		},
		{name: "a Node without address", nodes: []policy.Node{faultNode("new", "", "10.88.3.0/24")}},
		{
			name:  "Nodes with overlapping podCIDRs, and a pod on each with one address",
			nodes: []policy.Node{faultNode("twin", "192.0.2.13", "10.88.1.0/25")},
			pods:  []policy.Pod{faultPod("lab", "double", "twin", "10.88.1.5")},
			problems: []string{
				"Pod lab/double: status.podIPs: 10.88.1.5 is also claimed by shop/client;",
				"Pod shop/client: status.podIPs: 10.88.1.5 is also claimed by lab/double;",
			},
			cut: "client>web:tcp:80",
		},
		{
			name: "three pods with one address, all of whom a policy means",
			pods: []policy.Pod{
				faultPod("shop", "double", "peer", "10.88.1.5"), faultPod("shop", "triple", "peer", "10.88.1.5"),
			},
			problems: []string{
				"Pod shop/client: status.podIPs", "Pod shop/double: status.podIPs",
				"Pod shop/triple: status.podIPs: 10.88.1.5 is also claimed by shop/client, shop/double;",
			},
		},
		{
			name: "three pods with one address, one of whom no policy means",
			pods: []policy.Pod{
				faultPod("shop", "double", "peer", "10.88.1.5"), faultPod("lab", "triple", "peer", "10.88.1.5"),
			},
			problems: []string{
				"Pod lab/triple: status.podIPs", "Pod shop/client: status.podIPs",
				"Pod shop/double: status.podIPs",
			},
			cut: "client>web:tcp:80",
		},
		{
			name:     "a pod with the address of one on this node",
			pods:     []policy.Pod{faultPod("shop", "double", "peer", "10.88.0.4")},
			problems: []string{"Pod shop/double: status.podIPs: 10.88.0.4 is outside of the podCIDRs of the pod's Node peer;"},
		},
		{
			name:     "a pod with an address that its Node doesn't give out, but another",
			nodes:    []policy.Node{faultNode("far", "192.0.2.13", "10.88.3.0/24")},
			pods:     []policy.Pod{faultPod("shop", "liar", "far", "10.88.1.7")},
			problems: []string{"Pod shop/liar: status.podIPs: 10.88.1.7 is outside of the podCIDRs of the pod's Node far;"},
			denied:   "liar>web:tcp:80",
		},
		{
			name:     "a pod with an address that nobody gives out",
			pods:     []policy.Pod{faultPod("shop", "liar", "peer", "192.0.2.9")},
			problems: []string{"Pod shop/liar: status.podIPs: 192.0.2.9 is outside of the podCIDRs of the pod's Node peer;"},
			denied:   "liar>web:tcp:80",
		},
		{
			name: "a pod with two addresses, of which its Node gives out one",
			pods: []policy.Pod{{
				Namespace: "shop", Name: "half", NodeName: "peer", Labels: map[string]string{"app": "client"},
				Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("10.88.1.7")},
			}},
			problems: []string{"Pod shop/half: status.podIPs: 192.0.2.9 is outside"},
			pass:     "10.88.1.7>web:tcp:80",
		},
		{
			name: "a pod whose Node isn't there",
			pods: []policy.Pod{faultPod("shop", "liar", "gone", "10.88.1.7")},
			problems: []string{
				"Pod shop/liar: spec.nodeName: there is no Node \"gone\", so it is unknown whether 10.88.1.7 is the pod's address;",
			},
			denied: "liar>web:tcp:80",
		},
		{
			name: "a pod whose Node has no podCIDRs", nodes: []policy.Node{faultNode("new", "192.0.2.13")},
			pods: []policy.Pod{faultPod("shop", "liar", "new", "10.88.1.7")},
			problems: []string{
				"Pod shop/liar: spec.nodeName: Node new has no podCIDRs, so it is unknown whether 10.88.1.7 is the pod's address;",
			},
			denied: "liar>web:tcp:80",
		},
		{
			name:  "a pod elsewhere with an address that this node gives out too",
			nodes: []policy.Node{faultNode("twin", "192.0.2.13", "10.88.0.0/23")},
			pods:  []policy.Pod{faultPod("shop", "liar", "twin", "10.88.0.9")},
			problems: []string{
				"Pod shop/liar: status.podIPs: 10.88.0.9 is within the podCIDRs of this node, but the pod's Node is twin;",
			},
			denied: "liar>web:tcp:80",
		},
		{
			name:   "a pod of this node that isn't attached", // no error: its ADD is still to come, or its DEL is done
			pods:   []policy.Pod{faultPod("shop", "double", "self", "10.88.0.9")},
			denied: "10.88.0.9>web:tcp:80",
		},
		{
			name: "a pod that has its address twice", // for example, in status.podIP and in status.podIPs
			pods: []policy.Pod{{
				Namespace: "lab",
				Name:      "twice",
				NodeName:  "peer",
				Addresses: []netip.Addr{netip.MustParseAddr("10.88.1.9"), netip.MustParseAddr("10.88.1.9")},
			}},
		},
		{
			name: "a peer's selector with a value that no label has", // old API servers accepted such values
			more: "metadata: {name: x, namespace: shop}\nspec: {podSelector: {matchLabels: {app: db}}, " +
				"ingress: [{from: [{podSelector: {matchLabels: {app: 'no such value!'}}}]}]}",
			problems: []string{"NetworkPolicy shop/x: spec.ingress[0].from[0].podSelector: "},
		},
		{
			name: "one of two peers can't be read",
			more: "metadata: {name: x, namespace: shop}\nspec: {podSelector: {matchLabels: {app: db}}, " +
				"ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: Is}]}}, " +
				"{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
			problems: []string{"NetworkPolicy shop/x: spec.ingress[0].from[0].namespaceSelector: "},
		},
		{
			name: "IPv4 networks written as IPv6 networks",
			pods: []policy.Pod{{
				Namespace: "shop", Name: "six", Labels: map[string]string{"app": "db"}, NodeName: "self",
				Addresses: []netip.Addr{netip.MustParseAddr("fd00:10:88::7")},
			}},
			more: "metadata: {name: x, namespace: shop}\nspec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [" +
				"{ipBlock: {cidr: '::ffff:198.51.100.7/120'}}]}]}",
			problems: []string{
				"NetworkPolicy shop/x: spec.ingress[0].from[0].ipBlock.cidr: ::ffff:198.51.100.7/120 is an IPv4 network " +
					"written as an IPv6 network: write 198.51.100.0/24",
			},
			denied: "198.51.100.7>db:tcp:80",
		},
		{
			name: "a podSelector that can't be read, in a policy that lets everybody in",
			more: "metadata: {name: x, namespace: shop}\nspec: {podSelector: {matchLabels: {app: 'no such value!'}}, " +
				"ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}",
			problems: []string{"NetworkPolicy shop/x: spec.podSelector: "},
			cut:      "web>client:tcp:9 web>free:tcp:80",
		},
		{
			name: "a podSelector that can't be read isolates its namespace only",
			more: "metadata: {name: x, namespace: lab}\nspec: {podSelector: {matchExpressions: [{key: app, " +
				"operator: In}]}, ingress: [{}]}",
			problems: []string{"NetworkPolicy lab/x: spec.podSelector: "},
			cut:      "web>free:tcp:80 client>free:tcp:80 192.0.2.9>free:tcp:80",
		},
		{
			name:     "a direction that doesn't exist",
			more:     "metadata: {name: x, namespace: lab}\nspec: {podSelector: {}, policyTypes: [Inwards]}",
			problems: []string{"NetworkPolicy lab/x: spec.policyTypes[0]: "},
			cut:      "web>free:tcp:80 client>free:tcp:80 192.0.2.9>free:tcp:80",
			denied:   "free>192.0.2.9:tcp:80",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			manifests := shop
			if tc.more != "" {
				manifests += "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n" + tc.more
			}
			objects := golden.Objects(t, []byte(manifests))
			objects.Pods, objects.Problems = append(objects.Pods, tc.pods...), tc.unread
			state := golden.OnNode(objects)
			state.Endpoints = slices.DeleteFunc(state.Endpoints,
				func(e policy.Endpoint) bool { return e.Pod.Name == "double" || e.Pod.Name == "liar" })
			state.Nodes = append([]policy.Node{
				faultNode("self", "192.0.2.2", "10.88.0.0/24"),
				faultNode("peer", "192.0.2.12", "10.88.1.0/24"),
			}, tc.nodes...)
			state.Node = "self"
			want := policy.Compile(state)
			compareProblems(t, tc.problems, want.Problems)
			simulator, err := ruleset.NewSimulator(want)
			if err != nil {
				t.Fatal(err)
			}
			cut := strings.Fields(tc.cut)
			for _, s := range strings.Fields(pass + " " + tc.pass) {
				if want := !slices.Contains(cut, s); simulator.Allows(packet(t, state, s)) != want {
					t.Errorf("%s: allowed %v, want %v", s, !want, want)
				}
			}
			evaluator := verdict.New(state)
			for _, s := range strings.Fields(denied + " " + tc.denied) {
				p := packet(t, state, s)
				if simulator.Allows(p) {
					t.Errorf("%s is let through", s)
				}
				if evaluator.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}).Allowed() {
					t.Errorf("%s: the evaluator allows what the rules deny", s)
				}
			}
		})
	}
}

func compareProblems(t *testing.T, want []string, got []ruleset.Problem) {
	t.Helper()
	ok := len(want) == len(got)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.HasPrefix(got[i].String(), want[i])
	}
	if !ok {
		t.Errorf("problems:\n%s\nwant:\n%s", fmt.Sprintln(got), strings.Join(want, "\n"))
	}
}
