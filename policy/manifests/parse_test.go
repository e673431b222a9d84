package manifests

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

const (
	goodPod    = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
	goodPolicy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec: {podSelector: {}}\n"
)

func TestParse(t *testing.T) {
	policies := func(names ...string) (o policy.Objects) {
		for _, n := range names {
			o.Policies = append(o.Policies, &networkingv1.NetworkPolicy{
				TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
				ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: n},
			})
		}
		return o
	}
	pod := policy.Objects{Pods: []policy.Pod{{Namespace: "default", Name: "a"}}}
	for _, tc := range []struct {
		name, text string
		want       policy.Objects
	}{
		{"nothing", "", policy.Objects{}},
		{"comments", "# one\n---\n# two\n---\n\n---\nnull\n", policy.Objects{}},
		{
			"namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1, labels: {team: one}}\n",
			policy.Objects{Namespaces: []policy.Namespace{{Name: "ns-1", Labels: map[string]string{"team": "one", "kubernetes.io/metadata.name": "ns-1"}}}},
		},
		{
			"namespace under a false name", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1, labels: {kubernetes.io/metadata.name: kube-system}}\n",
			policy.Objects{Namespaces: []policy.Namespace{{Name: "ns-1", Labels: map[string]string{"kubernetes.io/metadata.name": "ns-1"}}}},
		},
		{"pod", `
apiVersion: v1
kind: Pod
metadata: {name: a.b-0, namespace: ns-1, uid: u1, labels: {app: a}}
spec: {hostNetwork: true, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.88.0.9, podIPs: [{ip: 10.88.0.2}, {ip: "fd00::2"}, {ip: "::ffff:10.88.0.3"}]}
`, policy.Objects{Pods: []policy.Pod{{
			Namespace: "ns-1", Name: "a.b-0", UID: "u1", Labels: map[string]string{"app": "a"}, HostNetwork: true,
			Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.88.0.3")},
		}}}},
		{
			"pod with the old podIP alone", goodPod + "status: {phase: Failed, podIP: 10.88.0.2}\n",
			policy.Objects{Pods: []policy.Pod{{Namespace: "default", Name: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")}, Finished: true}}},
		},
		{
			"node", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0/24]}\nstatus: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.0.2.1}]}\n",
			policy.Objects{Nodes: []policy.Node{{
				Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.1.0/24")},
			}}},
		},
		{"policy", goodPolicy, policies("deny")},
		{"JSON", `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}, "spec": {"podSelector": {}}}`, policies("deny")},
		{"CR LF", strings.ReplaceAll(goodPod+"---\n"+goodPolicy, "\n", "\r\n"), policy.Objects{Pods: pod.Pods, Policies: policies("deny").Policies}},
		{"end-of-document marks", goodPolicy + "...\n# nothing\n---\n" + goodPod + "...\n", policy.Objects{Pods: pod.Pods, Policies: policies("deny").Policies}},
		{"byte order mark", "\ufeff" + goodPolicy, policies("deny")},
		{
			"several documents, in their order", "---\n" + goodPolicy + "--- # the next\n# nothing\n---\n" + strings.Replace(goodPolicy, "deny", "also", 1) + "---\n" + goodPod,
			policy.Objects{Pods: pod.Pods, Policies: policies("deny", "also").Policies},
		},
		// Whatever is wrong with them, they are somebody else's.
		{"other kinds", "apiVersion: v1\nkind: Service\nmetadata: {name: NO}\nspeck: 1\n---\n" + goodPod +
			"---\napiVersion: apps/v1\nkind: Deployment\nspec: {template: {kind: NetworkPolicy}}\n---\napiVersion: networking.k8s.io/v1\nkind: Ingress\n", pod},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse("f.yaml", []byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What would be dropped without a word may be the policy that closes a pod.
func TestNothingIsDroppedSilently(t *testing.T) {
	const json = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": %q}, "spec": {"podSelector": {}}}` + "\n"
	for name, text := range map[string]string{
		"JSON objects in a row": fmt.Sprintf(json+json, "a", "b"),
		"end-of-document mark":  goodPod + "...\n" + goodPolicy,
		"text after the mark":   "--- {}\n" + goodPolicy,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse("f.yaml", []byte(text))
			if n := len(got.Pods) + len(got.Policies); n != 2 && err == nil {
				t.Errorf("%d of 2 objects, and no error", n)
			}
		})
	}
}

// A label that isn't what the manifest says matches selectors that it shouldn't. YAML 1.1 takes these for
// booleans, a number, and one in octal; kubectl has them refused.
func TestScalarsAreNotReinterpreted(t *testing.T) {
	for _, value := range []string{"y", "no", "1.10", "010"} {
		got, err := Parse("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: "+value+"}}\n"))
		if err == nil && got.Pods[0].Labels["app"] != value {
			t.Errorf("app: %s was read as %q, without an error", value, got.Pods[0].Labels["app"])
		}
	}
}

// TestParseRefuses puts the document between two good ones, and wants an error that says where it is and what is wrong.
func TestParseRefuses(t *testing.T) {
	np := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: ns-1}\nspec: " + spec + "\n"
	}
	pod := func(meta string) string { return "apiVersion: v1\nkind: Pod\nmetadata: " + meta + "\n" }
	for _, tc := range []struct {
		name, doc string
		want      []string // one error each, in this order
	}{
		{"unknown field", np("{podSelectr: {}}"), []string{`unknown field "spec.podSelectr"`}},
		{"unknown field below", np("{podSelector: {}, ingress: [{form: []}]}"), []string{`unknown field "spec.ingress[0].form"`}},
		{"unknown field of a pod", goodPod + "spec: {containers: [{nme: c}]}\n", []string{`unknown field "spec.containers[0].nme"`}},
		{"unknown field of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {nam: a}\n", []string{`unknown field "metadata.nam"`}},
		{"field in small letters", np("{podselector: {}}"), []string{`unknown field "spec.podselector"`}},
		{"two unknown fields", np("{podSelectr: {}, ingres: []}"), []string{`"spec.ingres"`, `"spec.podSelectr"`}},
		{"field twice", np("{podSelector: {}, podSelector: {}}"), []string{`"podSelector" already set`}},
		{"wrong type", np("{podSelector: all}"), []string{"spec.podSelector"}},
		{"wrong type of a label", pod("{name: a, labels: {app: 1}}"), []string{"metadata.labels"}},
		{"wrong type of labels", pod("{name: a, labels: [app]}"), []string{"metadata.labels"}},
		{"wrong type of a list", np("{podSelector: {}, ingress: {}}"), []string{"spec.ingress"}},
		{"no name", pod("{}"), []string{`metadata.name: ""`}},
		{"bad name", pod("{name: A_b}"), []string{`metadata.name: "A_b"`}},
		{"bad name of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ../x}\n", []string{`metadata.name: "../x"`}},
		{"bad name of a policy", strings.Replace(goodPolicy, "deny", "de ny", 1), []string{`metadata.name: "de ny"`}},
		{"bad namespace", pod("{name: a, namespace: a.b}"), []string{`metadata.namespace: "a.b"`}},
		{"bad label key", pod("{name: a, labels: {a b: c}}"), []string{`metadata.labels: Invalid value: "a b"`}},
		{"bad label value", pod("{name: a, labels: {app: b c}}"), []string{`metadata.labels: Invalid value: "b c"`}},
		{"bad address", goodPod + "status: {podIPs: [{ip: 10.88.0.2}, {ip: 10.88.0.256}]}\n", []string{`status.podIPs[1].ip: "10.88.0.256"`}},
		{"nobody's address", goodPod + "status: {podIP: 0.0.0.0}\n", []string{`status.podIPs[0].ip: "0.0.0.0"`}},
		{"address with a zone", goodPod + "status: {podIP: fe80::1%eth0}\n", []string{`status.podIPs[0].ip: "fe80::1%eth0"`}},
		{"CIDR of everything", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 0.0.0.0/0}\n", []string{`spec.podCIDRs[0]: "0.0.0.0/0"`}},
		{"bad CIDR of a node", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0]}\n", []string{`spec.podCIDRs[0]: "10.88.1.0"`}},
		{
			"bad CIDR", np("{podSelector: {}, ingress: [{}, {from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}"),
			[]string{`NetworkPolicy ns-1/bad: spec.ingress[1].from[0].ipBlock.cidr: "10.0.0.0/33"`},
		},
		{
			"bad except", np("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}"),
			[]string{"spec.egress[0].to[0].ipBlock.except[0]: 11.0.0.0/8"},
		},
		{"bad operator", np("{podSelector: {matchExpressions: [{key: a, operator: Is}]}}"), []string{"spec.podSelector"}},
		{"bad policy type", np("{podSelector: {}, policyTypes: [ingress]}"), []string{`spec.policyTypes[0]: "ingress"`}},
		{
			"bad port and peer", np("{podSelector: {}, ingress: [{ports: [{port: 0}], from: [{}]}]}"),
			[]string{"spec.ingress[0].ports[0].port: 0", "spec.ingress[0].from[0].podSelector"},
		},
		{"misspelt kind", strings.Replace(goodPolicy, "NetworkPolicy", "NetworkPolcy", 1), []string{"kind: NetworkPolcy of networking.k8s.io/v1"}},
		{"kind in small letters", strings.Replace(goodPolicy, "NetworkPolicy", "networkpolicy", 1), []string{"kind: networkpolicy of"}},
		{"plural kind", strings.Replace(goodPolicy, "NetworkPolicy", "NetworkPolicyList", 1), []string{"kind: NetworkPolicyList of"}},
		{"misspelt version", strings.Replace(goodPolicy, "k8s.io/v1", "k8s.io/v1beta1", 1), []string{"kind: NetworkPolicy of networking.k8s.io/v1beta1"}},
		{"old version", strings.Replace(goodPolicy, "networking.k8s.io/v1", "extensions/v1beta1", 1), []string{"kind: NetworkPolicy of extensions/v1beta1"}},
		{"version v1", strings.Replace(goodPolicy, "networking.k8s.io/v1", "v1", 1), []string{"kind: NetworkPolicy of v1"}},
		{"list", "apiVersion: v1\nkind: List\nitems: []\n", []string{"kind: List of v1"}},
		{"no apiVersion", "kind: NetworkPolicy\nmetadata: {name: a}\n", []string{`apiVersion and kind: both must be given, got "" and "NetworkPolicy"`}},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", []string{`apiVersion and kind: both must be given, got "v1" and ""`}},
		{"neither", "{}\n", []string{"apiVersion and kind"}},
		{"kind of a wrong type", "apiVersion: v1\nkind: [Pod]\n", []string{"kind"}},
		{"no object", "- a\n", []string{"array"}},
		{"no YAML", "foo: [\n", []string{"yaml: line 1"}},
		{"no text", "\x00\x01\n", []string{"yaml"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse("f.yaml", []byte(goodPolicy+"---\n"+tc.doc+"---\n"+goodPod))
			if err == nil {
				t.Fatal("no error")
			}
			errs := split(err)
			if len(errs) != len(tc.want) {
				t.Errorf("%d errors, want %d: %v", len(errs), len(tc.want), err)
			}
			for i := range min(len(errs), len(tc.want)) {
				if s := errs[i].Error(); !strings.HasPrefix(s, "f.yaml: document 2: ") || !strings.Contains(s, tc.want[i]) {
					t.Errorf("%s: want f.yaml, document 2 and %s", s, tc.want[i])
				}
			}
			if len(got.Policies) != 1 || got.Policies[0].Name != "deny" || len(got.Pods) != 1 || got.Pods[0].Name != "a" {
				t.Errorf("beside the bad one: %+v", got)
			}
		})
	}
}

func TestParseCountsDocuments(t *testing.T) {
	_, err := Parse("f.yaml", []byte("---\n# document 1\n---\nkind: Pod\n---\n"+goodPod+"---\nkind: Pod\n"))
	var where []string
	for _, e := range split(err) {
		where = append(where, strings.Join(strings.SplitN(e.Error(), ": ", 3)[:2], ": "))
	}
	if diff := cmp.Diff([]string{"f.yaml: document 2", "f.yaml: document 4"}, where); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "# c\n---\n---\n", "--- {}\n", "{}\n{}\n", "a: &a [*a]\n", "\xff\xfe", "kind: [\n", goodPod + "status: {podIPs: [{ip: x}, {ip: 10.88.0.2}]}\n",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1, labels: {a b: c}}\n---\n" + goodPod + "---\n" + goodPolicy,
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: x}]}\n",
		strings.Replace(goodPolicy, "podSelector: {}", `podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]},
  policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80, endPort: 90}, {port: http, protocol: SCTP}, {}], from: [{podSelector: {}, namespaceSelector: {}}]}],
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, "::/0"]}}]}]`, 1),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse("f.yaml", data)
		for _, e := range split(err) {
			if !strings.HasPrefix(e.Error(), "f.yaml: document ") {
				t.Errorf("%v: doesn't say where", e)
			}
		}
		// What comes back is fit for use, be there errors beside it or not.
		for _, n := range o.Namespaces {
			if n.Name == "" || n.Labels["kubernetes.io/metadata.name"] != n.Name {
				t.Errorf("%+v", n)
			}
		}
		for _, p := range o.Pods {
			if p.Namespace == "" || p.Name == "" {
				t.Errorf("%+v", p)
			}
		}
		for _, np := range o.Policies {
			if problems := policy.Validate(np); len(problems) > 0 || np.Namespace == "" || np.Name == "" {
				t.Errorf("%s/%s: %v", np.Namespace, np.Name, problems)
			}
		}
	})
}
