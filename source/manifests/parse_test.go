package manifests

import (
	"errors"
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
			policy.Objects{
				Namespaces: []policy.Namespace{
					{Name: "ns-1", Labels: map[string]string{"team": "one", "kubernetes.io/metadata.name": "ns-1"}},
				},
			},
		},
		{
			"namespace under a false name",
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1, labels: {kubernetes.io/metadata.name: kube-system}}\n",
			policy.Objects{
				Namespaces: []policy.Namespace{{Name: "ns-1", Labels: map[string]string{"kubernetes.io/metadata.name": "ns-1"}}},
			},
		},
		{"pod", `
apiVersion: v1
kind: Pod
metadata: {name: a.b-0, namespace: ns-1, uid: u1, labels: {app: a}}
spec: {hostNetwork: true, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.88.0.9, podIPs: [{ip: 10.88.0.2}, {ip: "fd00::2"}, {ip: "::ffff:10.88.0.3"}]}
`, policy.Objects{Pods: []policy.Pod{{
			Namespace: "ns-1", Name: "a.b-0", UID: "u1", Labels: map[string]string{"app": "a"}, HostNetwork: true,
			Addresses: []netip.Addr{
				netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2"),
				netip.MustParseAddr("10.88.0.3"),
			},
		}}}},
		{
			"pod with the old podIP alone", goodPod + "status: {phase: Failed, podIP: 10.88.0.2}\n",
			policy.Objects{
				Pods: []policy.Pod{{
					Namespace: "default",
					Name:      "a",
					Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")},
					Finished:  true,
				}},
			},
		},
		{
			"node",
			"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0/24]}\n" +
				"status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.0.2.1}]}\n",
			policy.Objects{Nodes: []policy.Node{{
				Name:      "n1",
				Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
				PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.88.1.0/24")},
			}}},
		},
		{"policy", goodPolicy, policies("deny")},
		{
			"JSON",
			`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}, ` +
				`"spec": {"podSelector": {}}}`, policies("deny"),
		},
		{
			"CR LF", strings.ReplaceAll(goodPod+"---\n"+goodPolicy, "\n", "\r\n"),
			policy.Objects{Pods: pod.Pods, Policies: policies("deny").Policies},
		},
		{
			"end-of-document marks", goodPolicy + "...\n# nothing\n---\n" + goodPod + "...\n",
			policy.Objects{Pods: pod.Pods, Policies: policies("deny").Policies},
		},
		{"byte order mark", "\ufeff" + goodPolicy, policies("deny")},
		{
			"several documents, in their order", "---\n" + goodPolicy + "--- # the next\n# nothing\n---\n" +
				strings.Replace(goodPolicy, "deny", "also", 1) + "---\n" + goodPod,
			policy.Objects{Pods: pod.Pods, Policies: policies("deny", "also").Policies},
		},
		// A mistake in an object that policies don't depend on, such as a Service, causes no error.
		{"other kinds", "apiVersion: v1\nkind: Service\nmetadata: {name: NO}\nspeck: 1\n---\n" + goodPod +
			"---\napiVersion: apps/v1\nkind: ControllerRevision\nspec: {template: {kind: NetworkPolicy}}\n---\n" +
			"apiVersion: networking.k8s.io/v1\nkind: Ingress\n", pod},
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

// TestWrappersAsPeopleWriteThem: Parse finds a policy in a List or Template, even if a kind or a field is in the wrong
// case, or if comments or directives come first. A policy whose rules are given twice allows nothing, even if hundreds
// of other fields are also given twice.
func TestWrappersAsPeopleWriteThem(t *testing.T) {
	const object = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}, ` +
		`"spec": {"podSelector": {}}}`
	many := strings.Repeat(`"a": "b", `, 300)
	hidden := strings.Replace(object, `{"name"`, `{"annotations": {`+many+`"c": "d"}, "name"`, 1)
	hidden = strings.Replace(hidden, `"podSelector": {}`, `"ingress": [], "ingress": [{}], "podSelector": {}`, 1)
	for name, text := range map[string]string{
		"kind in small letters":     "apiVersion: v1\nkind: list\nitems:\n- " + object,
		"field in capital letters":  "apiVersion: v1\nkind: List\nItems:\n- " + object,
		"template in small letters": "apiVersion: template.openshift.io/v1\nkind: template\nobjects:\n- " + object,
		"objects in capitals":       "apiVersion: template.openshift.io/v1\nkind: Template\nObjects:\n- " + object,
		"JSON behind a comment":     "# two\n{}\n  # objects\n" + object + "\n# end",
		"two directives":            "%YAML 1.1\n%TAG ! tag:a,2000:\n---\n" + object,
		"300 fields twice":          hidden,
		"300 fields twice, YAML":    "# YAML\n" + hidden,
		"300 in the item before": `{"kind": "List", "items": [{"kind": "A", ` + many + `"apiVersion": "v1"}, ` + hidden +
			`]}`,
	} {
		t.Run(name, func(t *testing.T) {
			var policies []*networkingv1.NetworkPolicy
			c := parse([]byte(text))
			for _, e := range c.entries {
				if e.policy != nil {
					policies = append(policies, e.policy)
				}
			}
			if len(policies) != 1 || len(policies[0].Spec.Ingress) > 0 {
				t.Errorf("policies: %+v, not read: %v", policies, c.unparsed)
			}
		})
	}
}

func TestNothingIsDroppedSilently(t *testing.T) {
	const json = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": %q}, ` +
		`"spec": {"podSelector": {}}}` + "\n"
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

// TestScalarsAreNotReinterpreted: YAML 1.1 reads some labels as booleans or numbers. For such labels, Parse must return
// an error or the label exactly as written.
func TestScalarsAreNotReinterpreted(t *testing.T) {
	for _, value := range []string{"y", "no", "1.10", "010"} {
		got, err := Parse("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: "+value+"}}\n"))
		if err == nil && got.Pods[0].Labels["app"] != value {
			t.Errorf("app: %s was read as %q, without an error", value, got.Pods[0].Labels["app"])
		}
	}
}

// TestParseComplains: if a bad document is between two good documents, the error says where the bad document is, and
// Parse returns the objects of the good documents.
func TestParseComplains(t *testing.T) {
	np := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: ns-1}\nspec: " +
			spec + "\n"
	}
	pod := func(meta string) string { return "apiVersion: v1\nkind: Pod\nmetadata: " + meta + "\n" }
	const (
		left     = ""                            // the bad object is left out
		byLabel  = "ns-1: app=a"                 // the policy denies ingress of the pods that it selects
		byLabel2 = "ns-1: app=a Ingress Egress"  // the policy denies ingress and egress of the pods that it selects
		all      = "ns-1: <none> Ingress Egress" // the policy denies ingress and egress of all pods of its namespace
		counts   = "counts"                      // Parse returns the part that can be read
	)
	selected := "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]"
	for _, tc := range []struct {
		name, doc string
		effect    string
		want      []string // a text in each error, in the order of the errors
	}{
		{"unknown field", np("{podSelectr: {}}"), all, []string{"spec.podSelectr: unknown field"}},
		{
			"unknown field beside the selector", np("{" + selected + ", foo: {}}"), byLabel2,
			[]string{"spec.foo: unknown field"},
		},
		{
			"unknown field below", np("{" + selected + ", ingress: [{form: []}]}"), byLabel,
			[]string{`spec.ingress[0].form: unknown field`},
		},
		{
			"unknown field of a block",
			np("{" + selected + ", ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, excpet: []}}]}]}"), byLabel,
			[]string{`spec.ingress[0].from[0].ipBlock.excpet: unknown field`},
		},
		{
			"unknown field of a port", np("{" + selected + ", ingress: [{ports: [{prot: 80}]}]}"), byLabel,
			[]string{`spec.ingress[0].ports[0].prot: unknown field`},
		},
		{
			"unknown field of a selector", np("{podSelector: {matchLabel: {}}}"),
			all,
			[]string{`spec.podSelector.matchLabel: unknown field`},
		},
		{"unknown field at the top", np("{"+selected+"}") + "speck: {}\n", byLabel2, []string{"speck: unknown field"}},
		{
			"unknown field in place of spec", strings.Replace(np("{}"), "spec", "speck", 1), all,
			[]string{"speck: unknown field"},
		},
		{"field in small letters", np("{podselector: {}}"), all, []string{"spec.podselector: unknown field"}},
		{
			"two unknown fields", np("{podSelectr: {}, ingres: []}"),
			all,
			[]string{"spec.ingres: unknown", "spec.podSelectr: unknown"},
		},
		{"field twice", np("{podSelector: {}, podSelector: {}}"), all, []string{`"spec.podSelector" is already set`}},
		{"spec twice", np("{podSelector: {}}") + "spec: {podSelector: {}}\n", all, []string{`"spec" is already set`}},
		{
			"rules twice", np("{" + selected + ", ingress: [], ingress: [{}]}"), byLabel,
			[]string{`"spec.ingress" is already set`},
		},
		{"wrong type", np("{podSelector: all}"), all, []string{"spec.podSelector"}},
		{"wrong type of a list", np("{" + selected + ", ingress: {}}"), byLabel, []string{"spec.ingress"}},
		{"wrong type of spec", np("[]"), all, []string{"spec: "}},
		{
			"bad CIDR", np("{" + selected + ", ingress: [{}, {from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}"), byLabel,
			[]string{`NetworkPolicy ns-1/bad: spec.ingress[1].from[0].ipBlock.cidr: "10.0.0.0/33"`},
		},
		{
			"bad except",
			np("{" + selected + ", egress: [], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}"),
			byLabel,
			[]string{"spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/8"},
		},
		{
			"bad operator", np("{podSelector: {matchExpressions: [{key: a, operator: Is}]}}"), all,
			[]string{"spec.podSelector"},
		},
		{
			"bad policy type", np("{podSelector: {matchLabels: {app: a}}, policyTypes: [ingress]}"), byLabel2,
			[]string{`spec.policyTypes[0]: "ingress"`},
		},
		{
			"wrong type of policy types", np("{podSelector: {matchLabels: {app: a}}, policyTypes: Ingress}"), byLabel2,
			[]string{`spec.policyTypes`},
		},
		{
			"bad port and peer", np("{" + selected + ", ingress: [{ports: [{port: 0}], from: [{}]}]}"), byLabel,
			[]string{"spec.ingress[0].ports[0].port: 0", "spec.ingress[0].from[0].podSelector"},
		},
		{
			"bad name of a policy", strings.Replace(np("{"+selected+"}"), "name: bad", "name: b d", 1), byLabel,
			[]string{`metadata.name: "b d"`},
		},
		{
			"no name of a policy", strings.Replace(np("{"+selected+"}"), "name: bad, ", "", 1), byLabel,
			[]string{`metadata.name: "": the name is missing`},
		},
		{
			"bad namespace of a policy", strings.Replace(np("{}"), "ns-1", "ns_1", 1), left,
			[]string{`metadata.namespace: "ns_1"`},
		},
		{"namespace of a wrong type", strings.Replace(np("{}"), "ns-1", "[ns-1]", 1), left, []string{`metadata.namespace: `}},
		{
			"misspelt namespace", strings.Replace(np("{}"), "namespace", "namspace", 1), left,
			[]string{`metadata.namspace: there is no such field`},
		},
		{
			"misspelt kind", strings.Replace(np("{"+selected+"}"), "NetworkPolicy", "NetworkPolcy", 1), byLabel,
			[]string{`kind: "NetworkPolcy"`},
		},
		{
			"kind in small letters", strings.Replace(np("{"+selected+"}"), "NetworkPolicy", "networkpolicy", 1), byLabel,
			[]string{`kind: "networkpolicy"`},
		},
		{
			"misspelt version", strings.Replace(np("{"+selected+"}"), "k8s.io/v1", "k8s.io/v1beta1", 1), byLabel,
			[]string{`apiVersion: "networking.k8s.io/v1beta1"`},
		},
		{
			"old version", strings.Replace(np("{"+selected+"}"), "networking.k8s.io/v1", "extensions/v1beta1", 1), byLabel,
			[]string{`apiVersion: "extensions/v1beta1"`},
		},
		{
			"version v1", strings.Replace(np("{"+selected+"}"), "networking.k8s.io/v1", "v1", 1), byLabel,
			[]string{`apiVersion: "v1"`},
		},
		{
			"no version", strings.Replace(np("{"+selected+"}"), "apiVersion: networking.k8s.io/v1\n", "", 1), byLabel,
			[]string{`apiVersion: ""`},
		},
		{
			"no kind of a policy", strings.Replace(np("{"+selected+"}"), "kind: NetworkPolicy\n", "", 1), byLabel,
			[]string{`kind: ""`},
		},

		{
			"unknown field of a pod's metadata", pod("{name: b, lables: {app: b}}"), left,
			[]string{"metadata.lables: there is no such field"},
		},
		{
			"unknown field of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {nam: b}\n", left,
			[]string{"metadata.name", "metadata.nam:"},
		},
		{
			"labels beside metadata", pod("{name: b}") + "labels: {app: b}\n", left,
			[]string{"labels: there is no such field; it may be metadata, or in it"},
		},
		{
			"namespace of a policy beside metadata",
			strings.Replace(np("{"+selected+"}"), ", namespace: ns-1}", "}\nnamespace: ns-1", 1), left,
			[]string{"namespace: there is no such field"},
		},
		{
			"labels beside a template's metadata",
			"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b}\nspec: {template: {labels: {app: b}, spec: {}}}\n", left,
			[]string{"spec.template.labels: there is no such field"},
		},
		{
			"host's network twice", pod("{name: b}") + "spec: {hostNetwork: false, hostNetwork: true}\n", left,
			[]string{"spec.hostNetwork: it is there twice"},
		},
		{
			"ports twice", pod("{name: b}") + "spec: {containers: [{name: c, ports: [], ports: []}]}\n", left,
			[]string{"spec.containers[0].ports: it is there twice"},
		},
		{
			"pod in small letters", strings.Replace(pod("{name: b}"), "Pod", "pod", 1), left,
			[]string{"kind: there is no pod in v1; it may be a misspelt Pod"},
		},
		{
			"workload in another group", "apiVersion: v1\nkind: Deployment\nmetadata: {name: b}\n", left,
			[]string{"kind: there is no Deployment in v1"},
		},
		{"no mark between two objects", strings.TrimSuffix(np("{"+selected+"}"), "\n") +
			"\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n", left, []string{"apiVersion or kind is there twice"}},
		{"wrong type of a label", pod("{name: b, labels: {app: 1}}"), counts, []string{"metadata.labels.app: "}},
		{"wrong type of labels", pod("{name: b, labels: [app]}"), left, []string{"metadata.labels"}},
		{"no name", pod("{}"), left, []string{`metadata.name: ""`}},
		{"bad name", pod("{name: A_b}"), left, []string{`metadata.name: "A_b"`}},
		{
			"bad name of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ../x}\n", left,
			[]string{`metadata.name: "../x"`},
		},
		{"bad namespace", pod("{name: b, namespace: a.b}"), left, []string{`metadata.namespace: "a.b"`}},
		{"bad label key", pod("{name: b, labels: {a b: c}}"), counts, []string{`metadata.labels.a b: Invalid value`}},
		{"bad label value", pod("{name: b, labels: {app: b c}}"), counts, []string{`metadata.labels.app: Invalid value`}},
		{
			"bad address", pod("{name: b}") + "status: {podIPs: [{ip: 10.88.0.2}, {ip: 10.88.0.256}]}\n", counts,
			[]string{`status.podIPs[1].ip: "10.88.0.256"`},
		},
		{
			"nobody's address", pod("{name: b}") + "status: {podIP: 0.0.0.0}\n", counts,
			[]string{`status.podIPs[0].ip: "0.0.0.0"`},
		},
		{
			"address with a zone", pod("{name: b}") + "status: {podIP: fe80::1%eth0}\n", counts,
			[]string{`status.podIPs[0].ip: "fe80::1%eth0"`},
		},
		{
			"port that is no number",
			pod("{name: b}") + "spec: {containers: [{name: c, ports: [{name: http, containerPort: x}]}]}\n", counts,
			[]string{`spec.containers: no port has a name`},
		},
		{
			"network of a node that is none", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.88.1.0}\n",
			counts,
			[]string{`spec.podCIDRs[0]: "10.88.1.0"`},
		},
		{
			"workload without a template", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b}\nspec: {}\n", left,
			[]string{"spec.template"},
		},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", left, []string{`it is no object`}},
		{"neither", "{}\n", left, []string{"it is no object"}},
		{"kind of a wrong type", "apiVersion: v1\nkind: [Pod]\n", left, []string{"it is no object"}},
		{"no object", "- a\n", left, []string{"it is no object"}},
		{
			"kind twice", "apiVersion: v1\nkind: NetworkPolicy\nkind: ConfigMap\nmetadata: {name: a}\n", left,
			[]string{"apiVersion or kind is there twice"},
		},
		{
			"version twice, in JSON", `{"apiVersion": "apps/v1", "apiVersion": "v1", "kind": "ConfigMap"}` + "\n", left,
			[]string{"apiVersion or kind is there twice"},
		},
		{
			"group in capital letters", strings.Replace(np("{"+selected+"}"), "networking", "Networking", 1), byLabel,
			[]string{`apiVersion: "Networking.k8s.io/v1"`},
		},
		{
			"misspelt items", "apiVersion: v1\nkind: List\nitmes: []\n", left,
			[]string{`the List has no items, but a field "itmes"`},
		},
		{
			"misspelt objects", "apiVersion: template.openshift.io/v1\nkind: Template\nobjcts: []\n", left,
			[]string{`the Template has no objects, but a field "objcts"`},
		},
		{
			"comment as in JavaScript", "// a\n{\"kind\":\"NetworkPolicy\"}\n", left,
			[]string{"it is one text, in which a kind is named"},
		},
		{
			"ends of lines in a field's name", np("{" + selected + ", \"a\\nb\\e[2J\": 1}"), byLabel2,
			[]string{`"spec.a\nb\x1b[2J": unknown field`},
		},
		{"no YAML", "foo: [\n", left, []string{"yaml: line 1"}},
		{"no text", "\x00\x01\n", left, []string{"yaml"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse("f.yaml", []byte(goodPolicy+"---\n"+tc.doc+"---\n"+goodPod))
			if err == nil {
				t.Fatal("no error")
			}
			errs := unjoined(err)
			if len(errs) != len(tc.want) {
				t.Errorf("%d errors, want %d: %v", len(errs), len(tc.want), err)
			}
			for i := range min(len(errs), len(tc.want)) {
				if s := errs[i].Error(); !strings.HasPrefix(s, "f.yaml: document 2: ") || !strings.Contains(s, tc.want[i]) {
					t.Errorf("%s: want f.yaml, document 2 and %s", s, tc.want[i])
				}
			}
			if len(got.Policies) == 0 || got.Policies[0].Name != "deny" || len(got.Pods) == 0 ||
				got.Pods[len(got.Pods)-1].Name != "a" {
				t.Errorf("beside the bad one: %+v", got)
			}
			effect := left
			if len(got.Policies) > 1 {
				bad := got.Policies[1]
				effect = bad.Namespace + ": " + metav1.FormatLabelSelector(&bad.Spec.PodSelector)
				if len(bad.Spec.PolicyTypes) > 1 {
					effect += " Ingress Egress"
				}
				if len(bad.Spec.Ingress)+len(bad.Spec.Egress) > 0 {
					t.Errorf("it has rules: %+v", bad.Spec)
				}
			} else if len(got.Pods)+len(got.Namespaces)+len(got.Nodes) > 1 {
				effect = counts
			}
			if effect != tc.effect {
				t.Errorf("effect %q, want %q", effect, tc.effect)
			}
		})
	}
}

func unjoined(err error) []error {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		return many.Unwrap()
	}
	return nil
}

func TestParseCountsDocuments(t *testing.T) {
	_, err := Parse("f.yaml", []byte("---\n# document 1\n---\nkind: Pod\n---\n"+goodPod+"---\nkind: Pod\n"))
	var where []string
	for _, e := range unjoined(err) {
		where = append(where, strings.Join(strings.SplitN(e.Error(), ": ", 3)[:2], ": "))
	}
	if diff := cmp.Diff([]string{"f.yaml: document 2", "f.yaml: document 4"}, where); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "# c\n---\n---\n", "--- {}\n", "{}\n{}\n", "a: &a [*a]\n", "\xff\xfe", "kind: [\n",
		goodPod + "status: {podIPs: [{ip: x}, {ip: 10.88.0.2}]}\n",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1, labels: {a b: c}}\n---\n" + goodPod + "---\n" + goodPolicy,
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0/24]}\n" +
			"status: {addresses: [{type: InternalIP, address: x}]}\n",
		strings.Replace(goodPolicy, "podSelector: {}",
			`podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]},
  policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80, endPort: 90}, {port: http, protocol: SCTP}, {}],
    from: [{podSelector: {}, namespaceSelector: {}}]}],
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, "::/0"]}}]}]`, 1),
	} {
		f.Add([]byte(s))
	}
	for _, s := range []string{
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, " +
			"metadata: {name: a}}, 1, null]}\n",
		`{"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "a", "name": "b"}}]}` + "\n{}\n",
		"apiVersion: v1\nkind: Template\nmetadata: {namespace: ns-1}\nlabels: {a: b}\nparameters: [{name: X, value: 80}, " +
			"{name: Y}]\nobjects:\n- " +
			"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, " +
			"ingress: [{ports: [{port: '${{X}}'}, {port: '${Y}'}]}]}}\n",
		"apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec: {jobTemplate: {spec: {completionMode: Indexed, " +
			"template: {metadata: {labels: {a: 1}}, spec: {}}}}}\n",
		"apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: c, ownerReferences: [{controller: true}]}\n" +
			"spec: {ordinals: {start: -1}, template: {spec: {containers: [{ports: [{containerPort: 70000, name: x}]}]}}}\n",
		"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: 1\n", "\xff\xfea\x00:\x001\x00", "\xfe\xff\x00a",
		"%YAML 1.1\n--- a: b\n... # x\n---x: y\n",
		strings.Replace(goodPolicy, "spec:", "spec: {podSelector: {}}\nspec:", 1), "a: &x {<<: *x}\n",
		"? [a]\n: b\n? 1\n: c\n1: d\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse("f.yaml", data)
		for _, e := range unjoined(err) {
			if !strings.HasPrefix(e.Error(), "f.yaml: document ") {
				t.Errorf("%v: doesn't say where", e)
			}
		}
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
		for _, w := range o.Workloads {
			for _, name := range []string{w.Name, w.Name + "-0", w.Name + "-bcdfg", w.Name + "-bcdfg-bcdfg"} {
				if p, ok := w.Make(name); ok && (p.Name != name || p.Namespace == "") {
					t.Errorf("%s makes %+v", w, p)
				}
			}
		}
		for _, np := range o.Policies {
			if problems := policy.Validate(np); len(problems) > 0 || np.Namespace == "" || np.Name == "" {
				t.Errorf("%s/%s: %v", np.Namespace, np.Name, problems)
			}
		}
	})
}
