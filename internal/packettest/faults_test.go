package packettest

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

// The tests in this file are about faults of weave-npc, the policy engine whose design weir follows. To run the tests
// of all such faults: go test ./... -run TestFault -v

// TestFault1SelectorsThatJoinAlike: selector a in namespace x selects other pods than the empty selector in namespace
// xa. In weave-npc these two could share a set, because it joined namespace and selector to the text "xa".
func TestFault1SelectorsThatJoinAlike(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	bare := pod("x", "bare", "10.88.0.5")
	n, state := attached(t, []uint16{80},
		pod("x", "web", "10.88.0.2"), pod("xa", "web", "10.88.0.3"), pod("xa", "other", "10.88.0.4"), bare)
	state.Namespaces = []policy.Namespace{{Name: "x"}, {Name: "xa"}}
	state.Policies = []*networkingv1.NetworkPolicy{
		networkPolicy(t,
			`{metadata: {namespace: x, name: np}, spec: {podSelector: {matchLabels: {app: web}}, `+
				`ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Exists}]}}]}]}}`),
		networkPolicy(t,
			`{metadata: {namespace: xa, name: np}, spec: {podSelector: {matchLabels: {app: web}}, `+
				`ingress: [{from: [{podSelector: {}}]}]}}`),
	}
	n.Enforce(state)
	x, xa, other := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.0.3"), netip.MustParseAddr("10.88.0.4")
	n.want("by their own selectors", to(xa, other, 80), append(to(x, other, 80), to(xa, bare.Addresses[0], 80)...))
	state.Pods[3].Labels = map[string]string{"a": ""}
	n.Enforce(state)
	n.want("with the label", append(to(x, bare.Addresses[0], 80), to(xa, other, 80)...),
		append(to(x, other, 80), to(xa, bare.Addresses[0], 80)...))
}

// TestFault2ANamespaceLosesItsLabel: if a namespace loses a label, its pods no longer match a namespaceSelector with
// this label. In weave-npc, some of the pods still matched.
func TestFault2ANamespaceLosesItsLabel(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n, state := attached(t, []uint16{80}, pod("x", "web", "10.88.0.2"), pod("y", "client", "10.88.0.3"))
	web, client := state.Pods[0].Addresses[0], state.Pods[1].Addresses[0]
	state.Policies = []*networkingv1.NetworkPolicy{networkPolicy(t, `
metadata: {namespace: x, name: np}
spec: {podSelector: {},
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: one}}, podSelector: {matchLabels: {app: client}}}]}]}
`)}
	for _, label := range []string{"one", "two", "one", ""} {
		state.Namespaces = []policy.Namespace{{Name: "x"}, {Name: "y", Labels: map[string]string{"team": label}}}
		if label == "" {
			state.Namespaces[1].Labels = nil
		}
		n.Enforce(state)
		if packets := to(web, client, 80); label == "one" {
			n.want("label one", packets, nil)
		} else {
			n.want("label "+label, nil, packets)
		}
	}
}

// TestFault3NamedPortsAndRanges: a named port allows only the port of this name, and endPort allows exactly a range. In
// weave-npc, a named port allowed all ports, and endPort was ignored.
func TestFault3NamedPortsAndRanges(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n, state := attached(t, []uint16{79, 80, 81, 8080, 8084, 8085},
		pod("x", "web", "10.88.0.2", policy.NamedPort{Name: "http", Proto: ruleset.TCP, Number: 80}),
		pod("x", "client", "10.88.0.3"))
	web, client := state.Pods[0].Addresses[0], state.Pods[1].Addresses[0]
	state.Policies = []*networkingv1.NetworkPolicy{networkPolicy(t, `
metadata: {namespace: x, name: np}
spec: {podSelector: {matchLabels: {app: web}},
  ingress: [{ports: [{port: http}, {port: none-has-it}]}, {ports: [{port: 8080, endPort: 8084}]}]}
`)}
	n.Enforce(state)
	n.want("a name and a range", to(web, client, 80, 8080, 8082, 8084), to(web, client, 79, 81, 8079, 8085))
}

// TestFault9NobodyReadsTheLog: the kernel drops packets even if no process reads the log. weave-npc stopped enforcing
// policies when its logging daemon ended.
func TestFault9NobodyReadsTheLog(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n, state := attached(t, []uint16{80, 81}, pod("x", "web", "10.88.0.2"), pod("x", "client", "10.88.0.3"),
		pod("x", "mute", "10.88.0.4"))
	web, client, mute := state.Pods[0].Addresses[0], state.Pods[1].Addresses[0], state.Pods[2].Addresses[0]
	state.Policies = []*networkingv1.NetworkPolicy{
		networkPolicy(t,
			`{metadata: {namespace: x, name: in}, spec: {podSelector: {matchLabels: {app: web}}, `+
				`ingress: [{ports: [{port: 80}]}]}}`),
		networkPolicy(t,
			`{metadata: {namespace: x, name: out}, spec: {podSelector: {matchLabels: {app: mute}}, policyTypes: [Egress]}}`),
	}
	for _, name := range Names {
		n.Use(name)
		n.Enforce(state)
		pass, closed := to(web, client, 80), append(to(web, client, 81), to(client, mute, 80)...)
		n.want("nobody listens", pass, closed)
		log := listen(t, 64<<10)
		n.want("somebody listens", pass, closed)
		classes := policy.Compile(state).Classes
		told := map[string]bool{}
		for prefix := range log.read(t) {
			chain, ok := strings.CutPrefix(prefix, "weir drop ")
			i := slices.IndexFunc(classes, func(c ruleset.Class) bool { return c.Chain == chain })
			if !ok || i < 0 {
				t.Errorf("%s: %q is no class's", name, prefix)
				continue
			}
			told[string(classes[i].Direction)+" "+strings.Join(classes[i].Policies, ",")+" "+
				strings.Join(classes[i].Pods, ",")] = true
		}
		if want := map[string]bool{"ingress x/in x/web": true, "egress x/out x/mute": true}; !maps.Equal(told, want) {
			t.Errorf("%s: the log tells of %v, want %v", name, told, want)
		}
		var many []verdict.Packet // more packets than fit into the log socket's buffer
		for range 3000 {
			many = append(many, verdict.Packet{Src: client, Dst: web, Proto: ruleset.UDP, Port: 81})
		}
		n.want("nobody reads", pass, append(many, closed...))
		if !log.overrun(t) {
			t.Errorf("%s: all of it was kept for whoever doesn't read: the test tests nothing", name)
		}
		log.close()
		n.want("who listened is gone", pass, closed)
	}
}
