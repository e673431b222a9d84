package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestRefused: if the kernel refuses a part of a policy, the part is reported, and isn't in the ruleset. Only packets
// that need this part are dropped.
func TestRefused(t *testing.T) {
	sctp, port, http := corev1.ProtocolSCTP, intstr.FromInt32(9), intstr.FromInt32(80)
	np := policytest.Letting("big", map[string]string{"app": "big"}, nil,
		networkingv1.NetworkPolicyPort{Port: &http}, networkingv1.NetworkPolicyPort{Port: &port, Protocol: &sctp})
	np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
		{NamespaceSelector: &metav1.LabelSelector{}}, {IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}},
	}})
	state := large(t, np)
	whole := policy.Compile(state)
	var selector, block, class, pods string
	for _, s := range whole.Sets {
		switch {
		case s.Kind == ruleset.Networks && s.Name != conf.NetworksSet:
			block = s.Name
		case strings.HasPrefix(s.Name, conf.SelectorSets) && s.Entries.Len() == 3:
			selector = s.Name
		}
	}
	for _, c := range whole.Classes {
		if c.Direction == ruleset.Ingress && strings.Join(c.Pods, " ") == "x/big" {
			class, pods = c.Set, c.Set
		}
	}
	element := func(s string) ruleset.Element { return ruleset.Element{Prefix: netip.MustParsePrefix(s)} }
	port80 := ruleset.Rule{Proto: ruleset.TCP, Ports: []ruleset.PortRange{{First: 80, Last: 80}}, Action: ruleset.Return}
	for name, tc := range map[string]struct {
		refusal      ruleset.Refusal
		pass, denied string
		problem      string
	}{
		"a kind of ports": {
			ruleset.Refusal{Kind: "sctp, one port"},
			"192.0.3.9>big:tcp:80 client>big:tcp:1 192.0.2.9>big:tcp:1", "192.0.3.9>big:sctp:9",
			"NetworkPolicy x/big: spec.ingress[0].ports[1]: the kernel refuses it: why",
		},
		"a rule": {
			ruleset.Refusal{Rule: port80.Key()},
			"192.0.3.9>big:sctp:9 client>big:tcp:80", "192.0.3.9>big:tcp:80",
			"NetworkPolicy x/big: spec.ingress[0]: the kernel refuses it: why",
		},
		"a type of sets": {
			ruleset.Refusal{SetKind: ruleset.Networks},
			"client>big:tcp:1 192.0.2.9>big:tcp:80", "192.0.2.9>big:tcp:1",
			"NetworkPolicy x/big: spec.ingress[1].from[1]: the kernel refuses it: why",
		},
		"a set": {
			ruleset.Refusal{Set: selector},
			"192.0.2.9>big:tcp:1 client>big:tcp:80", "client>big:tcp:1",
			"NetworkPolicy x/big: spec.ingress[1].from[0]: the kernel refuses it: why",
		},
		"an entry": {
			ruleset.Refusal{Set: block, Element: element("192.0.2.0/24")},
			"client>big:tcp:1", "192.0.2.9>big:tcp:1",
			"NetworkPolicy x/big: spec.ingress[1].from[1]: the kernel refuses it: why",
		},
		"the set of a class": {
			ruleset.Refusal{Set: class},
			"", "client>big:tcp:1 client>big:tcp:80",
			"NetworkPolicy x/big: spec.ingress: the kernel refuses it: why" +
				"; pods that exactly the same policies isolate are closed",
		},
		"a pod in its class": {
			ruleset.Refusal{Set: pods, Element: element("10.88.0.4/32")},
			"", "client>big:tcp:1 client>big:tcp:80",
			"Pod x/big: status.podIPs: the kernel refuses it: why; the pod is closed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			state := state
			state.Refused = ruleset.Refused{tc.refusal: "it: why"}
			want := policy.Compile(state)
			if len(want.Problems) != 1 || !strings.HasPrefix(want.Problems[0].String(), tc.problem) {
				t.Errorf("problems %q, want %q", want.Problems, tc.problem)
			}
			var text strings.Builder
			if err := want.Write(&text); err != nil {
				t.Fatal(err)
			}
			if r := tc.refusal; r.Rule != "" && strings.Contains(text.String(), "port 80:") {
				t.Errorf("the rule is asked for again:\n%s", text.String())
			} else if r.Set != "" && r.Element == (ruleset.Element{}) && strings.Contains(text.String(), "set "+r.Set+":") {
				t.Errorf("the set is asked for again:\n%s", text.String())
			}
			decides(t, want, state, tc.pass+" client>web:tcp:80", tc.denied+" big>web:tcp:80 192.0.2.9>web:tcp:80")
		})
	}
	if whole.Has(conf.IPv6) {
		t.Error("the state is of both families")
	}
}
