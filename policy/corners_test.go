package policy_test

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
)

// corners has two namespaces. The pods web, db and free have endpoints on this node. The other pods have none.
const corners = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tier: front}}
---
apiVersion: v1
kind: Namespace
metadata: {name: lab, labels: {tier: back}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.88.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.88.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: free, namespace: lab, labels: {app: web}}
status: {podIP: 10.88.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: lab, labels: {app: far}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}
status: {podIP: 10.88.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: hostnet, namespace: shop, labels: {app: web}}
spec: {hostNetwork: true, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}
status: {podIP: 192.0.2.2}
---
apiVersion: v1
kind: Pod
metadata: {name: hostnet-far, namespace: shop, labels: {app: web}}
spec: {hostNetwork: true, containers: []}
status: {podIP: 192.0.2.12}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, labels: {app: web}}
status: {podIP: 10.88.1.6, phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: failed, namespace: shop, labels: {app: web}}
status: {podIP: 10.88.1.7, phase: Failed}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop, labels: {app: web}}
`

// TestCorners: the compiled rules and the evaluator follow the API's text in points that are easily misread.
func TestCorners(t *testing.T) {
	for _, tc := range []struct {
		name, spec   string
		pass, denied string
	}{
		{
			"no rule", "podSelector: {matchLabels: {app: db}}", "db>8.8.8.8:tcp:80 web>free:tcp:80",
			"web>db:tcp:80 8.8.8.8>db:udp:53 far>db:1:0",
		},
		{"an empty list of rules", "{podSelector: {matchLabels: {app: db}}, ingress: []}", "db>web:tcp:80", "web>db:tcp:80"},
		{
			"a rule that says nothing: everybody, all protocols", "{podSelector: {matchLabels: {app: db}}, ingress: [{}]}",
			"web>db:tcp:80 8.8.8.8>db:1:0 far>db:sctp:9 far>db:132:0 far>db:50:0", "",
		},
		{
			"empty lists of peers and ports are the same",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [], ports: []}]}", "web>db:tcp:80 8.8.8.8>db:1:0", "",
		},
		{
			"ports without peers", "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{protocol: UDP}]}]}",
			"web>db:udp:1 8.8.8.8>db:udp:65535", "web>db:tcp:1 web>db:1:0 web>db:sctp:1",
		},
		{
			"a port is TCP's", "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80}]}]}", "web>db:tcp:80",
			"web>db:udp:80 web>db:sctp:80 web>db:1:0",
		},
		{
			"peers without ports: ICMP too", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}",
			"web>db:1:0 web>db:tcp:80 web>db:sctp:80", "free>db:1:0",
		},
		{
			"an absent podSelector is all pods",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {}}]}]}",
			"web>db:tcp:80 free>db:tcp:80 far>db:tcp:80",
			"8.8.8.8>db:tcp:80 192.0.2.12>db:tcp:80 10.88.1.6>db:tcp:80 10.88.1.99>db:tcp:80",
		},
		{
			"an absent namespaceSelector is the policy's namespace",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}", "web>db:tcp:80",
			"free>db:tcp:80 far>db:tcp:80",
		},
		{
			"both in one peer",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {tier: back}}, " +
				"podSelector: {matchLabels: {app: web}}}]}]}", "free>db:tcp:80", "web>db:tcp:80 far>db:tcp:80",
		},
		{
			"the same as two peers",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {tier: back}}}, " +
				"{podSelector: {matchLabels: {app: web}}}]}]}", "free>db:tcp:80 web>db:tcp:80 far>db:tcp:80", "8.8.8.8>db:tcp:80",
		},
		{
			"an empty podSelector selects all pods of the namespace", "podSelector: {}", "web>free:tcp:80",
			"free>web:tcp:80 free>db:tcp:80",
		},
		{
			"NotIn is true where the label is missing",
			"{podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [x]}]}}", "web>free:tcp:80",
			"free>web:tcp:80 free>db:tcp:80",
		},
		{
			"DoesNotExist and Exists",
			"{podSelector: {matchExpressions: [{key: role, operator: DoesNotExist}, {key: app, operator: Exists}, " +
				"{key: app, operator: In, values: [db, x]}]}}", "free>web:tcp:80", "free>db:tcp:80",
		},
		{
			"policyTypes: none, and egress rules",
			"{podSelector: {matchLabels: {app: db}}, egress: [{ports: [{port: 53, protocol: UDP}]}]}", "db>8.8.8.8:udp:53",
			"web>db:tcp:80 db>8.8.8.8:tcp:53",
		},
		{
			"policyTypes: none, and an empty list of egress rules", "{podSelector: {matchLabels: {app: db}}, egress: []}",
			"db>8.8.8.8:tcp:53", "web>db:tcp:80",
		},
		{
			"policyTypes: Ingress, and egress rules",
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], egress: [{ports: [{port: 53}]}]}",
			"db>8.8.8.8:tcp:80", "web>db:tcp:80",
		},
		{
			"policyTypes: Egress, and ingress rules",
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], ingress: [{ports: [{port: 53}]}]}", "web>db:tcp:80",
			"db>8.8.8.8:tcp:80 db>web:tcp:80 db>node:tcp:80 db>node:1:0",
		},
		{
			"hostNetwork pods are in no peer, but in an ipBlock",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}, " +
				"{from: [{ipBlock: {cidr: 192.0.2.12/32}}], ports: [{port: 81}]}]}", "web>db:tcp:80 192.0.2.12>db:tcp:81",
			"192.0.2.12>db:tcp:80",
		},
		{
			"pods that have ended, and those without address, are in no peer",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
			"web>db:tcp:80", "10.88.1.6>db:tcp:80 10.88.1.7>db:tcp:80",
		},
		{
			"towards the own node, as one's egress rules say",
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.2/32}}], " +
				"ports: [{port: 10250}]}]}", "db>node:tcp:10250", "db>node:tcp:22 db>192.0.2.12:tcp:10250",
		},
		{
			"the node is no pod",
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}",
			"db>web:tcp:80 db>far:tcp:80", "db>node:tcp:80 db>192.0.2.12:tcp:80",
		},
		{
			"a name of a port, towards each pod's own number",
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
			"db>web:tcp:8080 db>far:tcp:8081",
			"db>web:tcp:8081 db>far:tcp:8080 db>node:tcp:80 db>8.8.8.8:tcp:8080 db>web:udp:8080",
		},
		{
			"a range of ports, its ends included",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 100, endPort: 200, protocol: SCTP}]}]}",
			"web>db:sctp:100 web>db:sctp:200", "web>db:sctp:99 web>db:sctp:201 web>db:tcp:150",
		},
		{
			"a block and what is excepted, though the same policy allows it elsewhere",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, " +
				"10.88.0.0/16, 0.0.0.0/1]}}, {ipBlock: {cidr: 10.88.1.0/24, except: [10.88.1.0/25]}}]}]}",
			"192.0.2.9>db:tcp:1 255.255.255.255>db:tcp:1 10.88.1.200>db:tcp:1",
			"8.8.8.8>db:tcp:1 10.88.1.5>db:tcp:1 far>db:tcp:1 web>db:tcp:1",
		},
		{
			"nothing is left of a block",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, " +
				"10.128.0.0/9]}}]}]}", "web>free:tcp:80", "web>db:tcp:80 8.8.8.8>db:tcp:80",
		},
		{
			"an except that is written as an IPv6 network",
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [" +
				"'::ffff:10.0.0.0/104']}}]}]}",
			"192.0.2.9>db:tcp:1 9.255.255.255>db:tcp:1 11.0.0.0>db:tcp:1", "web>db:tcp:1 10.255.255.255>db:tcp:1",
		},
		{
			"everything", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
			"web>db:tcp:80 0.0.0.1>db:1:0 255.255.255.255>db:udp:1", "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := tc.spec
			if !strings.HasPrefix(spec, "{") {
				spec = "{" + spec + "}"
			}
			state := golden.OnNode(golden.Objects(t,
				[]byte(corners+
					"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: shop}\nspec: "+spec)))
			want := policy.Compile(state)
			if len(want.Problems) > 0 {
				t.Error(want.Problems)
			}
			decides(t, want, state, tc.pass, tc.denied)
			evaluates(t, state, tc.pass, tc.denied)
		})
	}
}

// TestChangesOfObjects: if a label, a namespace or a policy is removed or changed, its old effect ends.
func TestChangesOfObjects(t *testing.T) {
	const np = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{namespaceSelector: {matchLabels: {tier: back}}, podSelector: {matchLabels: {app: web}}}]}]}
`
	engine, last := policy.NewEngine(""), policy.Objects{}
	for _, tc := range []struct{ name, from, to, pass, denied string }{
		{"at first", "", "", "free>db:tcp:80", "web>db:tcp:80"},
		{
			"a peer has another label", "{name: free, namespace: lab, labels: {app: web}}",
			"{name: free, namespace: lab, labels: {app: other}}", "", "free>db:tcp:80",
		},
		{
			"its namespace has another label", "{name: lab, labels: {tier: back}}", "{name: lab, labels: {tier: front}}", "",
			"free>db:tcp:80",
		},
		{"its namespace has no label", "{name: lab, labels: {tier: back}}", "{name: lab}", "", "free>db:tcp:80"},
		{
			"its namespace isn't known", "kind: Namespace\nmetadata: {name: lab, labels: {tier: back}}",
			"kind: ConfigMap\nmetadata: {name: lab}", "", "free>db:tcp:80",
		},
		{
			"the pod that was selected isn't", "labels: {app: db}}\nstatus", "labels: {app: none}}\nstatus",
			"free>db:tcp:80 web>db:tcp:80", "",
		},
		{
			"another pod is selected too", "{name: web, namespace: shop, labels: {app: web}}",
			"{name: web, namespace: shop, labels: {app: db}}", "free>db:tcp:80 free>web:tcp:80", "db>web:tcp:80",
		},
		{"the policy is gone", np, "", "free>db:tcp:80 web>db:tcp:80 8.8.8.8>db:tcp:80", ""},
		{"at last", "", "", "free>db:tcp:80", "web>db:tcp:80"},
	} {
		text := corners + np
		if tc.from != "" && strings.Count(text, tc.from) != 1 {
			t.Fatalf("%s: %q is there %d times", tc.name, tc.from, strings.Count(text, tc.from))
		}
		if tc.from != "" {
			text = strings.Replace(text, tc.from, tc.to, 1)
		}
		state := golden.OnNode(golden.Objects(t, []byte(text)))
		engine.Apply(policy.Difference(last, state.Objects))
		engine.SetEndpoints(state.Endpoints)
		last = state.Objects
		simulator, err := ruleset.NewSimulator(engine.Ruleset())
		if err != nil {
			t.Fatal(err)
		}
		for want, list := range map[bool]string{true: tc.pass, false: tc.denied} {
			for _, s := range strings.Fields(list) {
				if got := simulator.Allows(packet(t, state, s)); got != want {
					t.Errorf("%s: %s passes: %v, want %v", tc.name, s, got, want)
				}
			}
		}
	}
}
