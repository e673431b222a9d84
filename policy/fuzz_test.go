package policy_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/golden"
)

// FuzzPolicy compiles random policies. The rules must give the same verdicts as the evaluator. They must also drop
// packets to weir0 whose destination is no pod.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 10.88.0.0/16]}}], ` +
			`ports: [{port: 80, endPort: 90}]}]}`,
		`{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}, policyTypes: [Egress], ` +
			`egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}`,
		`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}, ` +
			`{ipBlock: {cidr: "::/0"}}, {}]}], egress: [{}]}`,
		`{podSelector: {matchLabels: {app: "a b"}}, ingress: [{ports: [{port: 70000}, {endPort: 1}, ` +
			`{port: x, endPort: 2}, {protocol: ICMP}]}]}`,
		`{podSelector: {}, policyTypes: [Ingres, ""], ingress: [{from: [{ipBlock: {cidr: 10.88.1.5/32}}, ` +
			`{ipBlock: {cidr: 10.88.1.4/31, except: [10.88.1.5/32]}}]}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		np := &networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = "shop", "fuzzed"
		if yaml.Unmarshal(data, &np.Spec) != nil || len(data) > 1<<11 {
			return
		}
		objects := golden.Objects(t, []byte(shop))
		objects.Policies = append(objects.Policies, np)
		state := golden.OnNode(objects)
		simulator, err := ruleset.NewSimulator(policy.Compile(state))
		if err != nil {
			t.Fatal(err)
		}
		evaluator := verdict.New(state)
		for _, s := range []string{
			"client>web:tcp:80", "client>db:tcp:80", "free>web:tcp:80", "192.0.2.9>db:udp:53", "web>client:tcp:80",
			"db>8.8.8.8:sctp:443", "web>node:1:0", "10.88.1.5>db:tcp:1",
		} {
			p := packet(t, state, s)
			v := evaluator.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
			if got := simulator.Allows(p); got != v.AllowedHere() {
				t.Errorf("%s: the rules let it through: %v. But the policies say:\n%s", s, got, v)
			}
		}
		if simulator.Allows(ruleset.Packet{
			In:    "eth0",
			Out:   "weir0",
			Src:   netip.MustParseAddr("192.0.2.9"),
			Dst:   netip.MustParseAddr("10.88.0.99"),
			Proto: ruleset.TCP,
			Port:  80,
		}) {
			t.Error("what goes to no pod is let through")
		}
	})
}
