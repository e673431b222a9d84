package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
)

func large(t testing.TB, policies ...*networkingv1.NetworkPolicy) policy.State {
	t.Helper()
	objects := golden.Objects(t, []byte(`
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: sane}
status: {podIP: 10.88.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: sane, labels: {app: client}}
status: {podIP: 10.88.1.3}
---
apiVersion: v1
kind: Pod
metadata: {name: big, namespace: x, labels: {app: big}}
status: {podIP: 10.88.0.4}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: zz, namespace: sane}
spec:
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`))
	objects.Policies = append(policies, objects.Policies...)
	return golden.OnNode(objects)
}

// TestLargePolicies: a part of a policy that exceeds a limit is reported, and allows nothing. The other policies keep
// their full effect.
func TestLargePolicies(t *testing.T) {
	big := map[string]string{"app": "big"}
	let := func(from []networkingv1.NetworkPolicyPeer,
		ports ...networkingv1.NetworkPolicyPort,
	) []*networkingv1.NetworkPolicy {
		return []*networkingv1.NetworkPolicy{policytest.Letting("big", big, from, ports...)}
	}
	anyone := []networkingv1.NetworkPolicyPeer{
		{NamespaceSelector: &metav1.LabelSelector{}},
		{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}},
	}
	tooMany := let(policytest.Selectors(0, 1025))
	tooMany[0].Spec.Ingress = append(tooMany[0].Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: anyone})
	var sets []*networkingv1.NetworkPolicy
	for i := range 9 {
		sets = append(sets, policytest.Letting(fmt.Sprint("big-", i), big, policytest.Selectors(1000*i, 1000)))
	}
	sets[8].Spec.Ingress[0].From = append(sets[8].Spec.Ingress[0].From,
		networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}})
	full := let(anyone)
	full[0].Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: append(namedPorts(1), policytest.OddPorts(1)...)}}
	broken := let(nil)
	for range 100_000 {
		broken[0].Spec.Ingress[0].From = append(broken[0].Spec.Ingress[0].From,
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/33"}})
	}
	for _, tc := range []struct {
		name         string
		policies     []*networkingv1.NetworkPolicy
		more         []policy.Pod
		rules        int // the number of rules in the ingress chain of the pod x/big, without the two that log and drop
		pass, denied string
		problems     []string // how the problems begin; the last text may be the beginning of several problems
		of           int      // the number of problems, if the list problems has only some of them
	}{
		{
			name:     "4,000 ports",
			policies: let(nil, policytest.OddPorts(4000)...),
			rules:    1,
			pass:     "client>big:tcp:1 client>big:tcp:7999",
			denied:   "client>big:tcp:2 client>big:tcp:8001 client>big:udp:1 client>big:1:0",
		},
		{
			name: "4,000 ports for each of two peers", policies: let(anyone, policytest.OddPorts(4000)...), rules: 2,
			pass: "client>big:tcp:3999 192.0.2.9>big:tcp:3999", denied: "192.0.2.9>big:tcp:4000 192.0.3.9>big:tcp:3999",
		},
		{
			name:     "100,000 ipBlocks",
			policies: let(policytest.EvenAddresses(100_000), policytest.OddPorts(2)...),
			rules:    1,
			pass:     "172.16.0.0>big:tcp:1 172.19.13.62>big:tcp:3",
			denied:   "172.16.0.1>big:tcp:1 172.19.13.64>big:tcp:1 172.16.0.0>big:tcp:2",
		},
		{
			name: "an ipBlock with 4,000 excepts", policies: let(policytest.AllButEven(4000)), rules: 1,
			pass: "172.16.0.1>big:tcp:1 8.8.8.8>big:tcp:1", denied: "172.16.0.0>big:tcp:1 172.16.31.62>big:tcp:1",
		},
		{
			name:     "too many networks",
			policies: let(policytest.EvenAddresses(1<<17 + 1)),
			denied:   "172.16.0.0>big:tcp:1 client>big:tcp:1",
			problems: []string{
				"NetworkPolicy x/big: spec.ingress[0]: with it the policy needs 131073 networks and ports, and the limit is " +
					"131072; " +
					"it allows nothing",
			},
		},
		{
			name:     "too many networks, made of few",
			policies: let(policytest.AllButEven(1 << 17)),
			denied:   "8.8.8.8>big:tcp:1 172.16.0.1>big:tcp:1",
			problems: []string{"NetworkPolicy x/big: spec.ingress[0]: with it the policy needs "},
		},
		{
			name: "too many rules, and a rule that is not", policies: tooMany, rules: 2,
			pass: "client>big:tcp:1 192.0.2.9>big:tcp:1",
			problems: []string{
				"NetworkPolicy x/big: spec.ingress[0]: with it the policy needs 1025 rules in the kernel, and the limit is 1024; " +
					"it allows nothing",
			},
		},
		{
			name:     "too many rules of peers and ports",
			policies: let(policytest.Selectors(0, 300), append(namedPorts(3), policytest.OddPorts(2)...)...),
			denied:   "client>big:tcp:1",
			problems: []string{"NetworkPolicy x/big: spec.ingress[0]: with it the policy needs 1200 rules"},
		},
		{
			name:     "more addresses than a set can have, of peers and of pods with a port",
			policies: full,
			rules:    1,
			more: []policy.Pod{{
				Namespace: "x",
				Name:      "many",
				Ports:     []policy.NamedPort{{Name: "port-0", Proto: ruleset.TCP, Number: 7}},
				Addresses: addresses(conf.MaxSetEntries + 1),
			}},
			pass:   "192.0.2.9>big:tcp:1 big>client:tcp:1",
			denied: "client>big:tcp:1 11.0.0.1>big:tcp:1 big>11.0.0.1:tcp:7 big>client:tcp:7",
			problems: []string{
				"NetworkPolicy x/big: spec.egress[0].ports: matches 1048577 addresses, and a set can have 1048576; " +
					"it allows nothing",
				"NetworkPolicy x/big: spec.ingress[0].from[0]: matches 1048580 addresses",
			},
		},
		{
			name:     "more sets than a node has room for",
			policies: sets,
			rules:    8192 - 8192/64, // the capacity that the namespace sane leaves, rounded down
			denied:   "10.88.1.9>big:tcp:1 client>big:tcp:1",
			more: []policy.Pod{{
				Namespace: "x",
				Name:      "other",
				Labels:    map[string]string{"app": "other"},
				Addresses: []netip.Addr{netip.MustParseAddr("10.88.1.9")},
			}},
			problems: []string{"NetworkPolicy x/big-8: spec.ingress[0].from["},
			of:       50,
		},
		{
			name: "100,000 broken ipBlocks", policies: broken, denied: "client>big:tcp:1 192.0.2.9>big:tcp:1",
			problems: []string{
				"NetworkPolicy x/big: spec.ingress[0].from[0].ipBlock.cidr: ",
				"NetworkPolicy x/big: spec.ingress[0].from[",
			}, of: 50,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state := large(t, tc.policies...)
			state.Pods = append(state.Pods, tc.more...)
			got := policy.Compile(state)
			for i, p := range got.Problems {
				if want := tc.problems[min(i, len(tc.problems)-1)]; !strings.HasPrefix(p.String(), want) {
					t.Errorf("problem %.200s, want %s", p, want)
				}
			}
			if want := max(tc.of, len(tc.problems)); len(got.Problems) != want {
				t.Errorf("%d problems, want %d: %.1000s", len(got.Problems), want, fmt.Sprint(got.Problems))
			}
			class := slices.IndexFunc(got.Classes, func(c ruleset.Class) bool {
				return slices.Contains(c.Pods, "x/big") && c.Direction == ruleset.Ingress
			})
			if chain, _ := got.Chain(conf.IPv4, got.Classes[class].Chain); len(chain.Rules) != tc.rules+2 {
				t.Errorf("%d rules, want %d", len(chain.Rules)-2, tc.rules)
			}
			decides(t, got, state, tc.pass+" client>web:tcp:80", tc.denied+" big>web:tcp:80 192.0.2.9>web:tcp:80")
		})
	}
}

// TestInvalid: a policy has three faults: it is too large for weir, an annotation is wrong, and a peer has neither a
// selector nor an ipBlock. Invalid returns only the last fault, because an API server accepts the other two.
func TestInvalid(t *testing.T) {
	np := policytest.Letting("big", nil, append(policytest.Selectors(0, 1025), networkingv1.NetworkPolicyPeer{}))
	np.Annotations = map[string]string{policy.AuditAnnotation: "maybe"}
	if all := policy.Validate(np); len(all) != 3 {
		t.Errorf("%d problems: %v", len(all), all)
	}
	invalid := policy.Invalid(np)
	if len(invalid) != 1 || invalid[0].Field != "spec.ingress[0].from[1025].podSelector" {
		t.Errorf("an API server would refuse: %v", invalid)
	}
}

func namedPorts(n int) []networkingv1.NetworkPolicyPort {
	list := make([]networkingv1.NetworkPolicyPort, n)
	for i := range list {
		port := intstr.FromString(fmt.Sprint("port-", i))
		list[i].Port = &port
	}
	return list
}

func addresses(n int) []netip.Addr {
	all := make([]netip.Addr, n)
	a := netip.MustParseAddr("11.0.0.0")
	for i := range all {
		a = a.Next()
		all[i] = a
	}
	return all
}
