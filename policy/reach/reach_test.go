package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
)

func networkPolicy(t *testing.T, text string) *networkingv1.NetworkPolicy {
	t.Helper()
	var np networkingv1.NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(text), &np); err != nil {
		t.Fatal(err)
	}
	return &np
}

func pod(name string, parts ...string) policy.Pod {
	p := policy.Pod{Labels: map[string]string{}}
	p.Namespace, p.Name, _ = strings.Cut(name, "/")
	for _, part := range parts {
		if key, value, isLabel := strings.Cut(part, "="); isLabel {
			p.Labels[key] = value
		} else {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(part))
		}
	}
	return p
}

func lines(m *reach.Matrix, rows []reach.Row) (all []string) {
	for _, r := range rows {
		line := strings.Join(m.Words(r.From, r.To), "+") + " > " + strings.Join(m.Words(r.To, r.From), "+") + ": " +
			r.Ports.String()
		if r.Family != "" {
			line += " " + r.Family
		}
		all = append(all, line)
	}
	slices.Sort(all)
	return all
}

func TestMatrix(t *testing.T) {
	for _, tc := range []struct {
		name     string
		pods     []policy.Pod
		policies []string
		want     []string
	}{
		{
			"no policy",
			[]policy.Pod{pod("a/x", "10.0.0.1"), pod("b/y", "10.0.0.2")},
			nil,
			[]string{"all pods > the world: everything", "everyone > all pods: everything"},
		},
		{
			"one pod alone",
			[]policy.Pod{pod("a/x", "10.0.0.1")},
			[]string{`{metadata: {namespace: a, name: deny}}`},
			[]string{"a/x > the world: everything"},
		},
		{
			"IPv4 networks written as IPv6 networks match nothing",
			[]policy.Pod{pod("a/x", "fd00::1")},
			[]string{`{metadata: {namespace: a, name: p}, spec: {ingress: [{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104"}},
			  {ipBlock: {cidr: "::ffff:10.0.0.0/104", except: ["::ffff:10.0.0.0/112"]}}]}]}}`},
			[]string{"a/x > the world: everything"},
		},
		{
			"replicas are one group, which policies that select by a pod's own label divide",
			[]policy.Pod{
				pod("a/db-0", "10.0.0.1", "app=db", "statefulset.kubernetes.io/pod-name=db-0"),
				pod("a/db-1", "10.0.0.2", "app=db", "statefulset.kubernetes.io/pod-name=db-1"),
				pod("a/db-2", "10.0.0.3", "app=db", "statefulset.kubernetes.io/pod-name=db-2"),
			},
			[]string{`
metadata: {namespace: a, name: first}
spec: {podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}}, ingress: [{ports: [{port: 80}]}]}`},
			[]string{
				"all pods > the world: everything", "everyone > a/db [db-0]: TCP 80",
				"everyone > a/db [db-1]+a/db [db-2]: everything",
			},
		},
		{
			"the families differ where an ipBlock of one of them decides",
			[]policy.Pod{pod("a/x", "10.0.0.1", "fd00::1"), pod("a/y", "10.0.0.2", "fd00::2", "app=db")},
			[]string{`
metadata: {namespace: a, name: v4}
spec: {podSelector: {matchLabels: {app: db}}, 
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1, endPort: 9}]}]}`},
			[]string{
				"10.0.0.0/8 > a/y: TCP 1-9", "a/x > a/y: TCP 1-9 IPv4", "a/y+the world > a/x: everything",
				"all pods > the world: everything",
			},
		},
		{
			"protocols without ports, and all but a port",
			[]policy.Pod{pod("a/x", "10.0.0.1")},
			[]string{`
metadata: {namespace: a, name: most}
spec:
  podSelector: {}
  policyTypes: [Egress, Ingress]
  egress: [{ports: [{port: 1, endPort: 24}, {port: 26, endPort: 65535}, {protocol: UDP}, {protocol: SCTP}]}]
  ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/25}}, {ipBlock: {cidr: 192.0.2.128/25, except: [192.0.2.255/32]}}]}]`},
			[]string{
				"192.0.2.0/24 (except 192.0.2.255/32) > a/x: everything",
				"a/x > the world: TCP 1-24, 26-65535; all UDP; all SCTP",
			},
		},
		{
			"an except of an except",
			[]policy.Pod{pod("a/x", "fd00::1")},
			[]string{`
metadata: {namespace: a, name: most}
spec:
  podSelector: {}
  ingress: [{from: [{ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}}]}]
  policyTypes: [Ingress, Egress]
  egress: [{to: [{ipBlock: {cidr: "::/1"}}, {ipBlock: {cidr: "8000::/1"}}]}]`},
			[]string{
				"2001:db8::/32 (except 2001:db8:1::/48) > a/x: everything",
				"a/x > the world: everything",
			},
		},
		{
			"all addresses but those of a block with an except",
			[]policy.Pod{pod("a/x", "10.0.0.1")},
			[]string{`
metadata: {namespace: a, name: some}
spec:
  podSelector: {}
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.88.0.0/24]}}], ports: [{port: 80}]}, {ports: [{port: 53}]}]
  policyTypes: [Ingress, Egress]`},
			[]string{
				"a/x > 0.0.0.0/0 (except 10.0.0.0/8 (except 10.88.0.0/24)): TCP 53",
				"a/x > 10.0.0.0/8 (except 10.88.0.0/24): TCP 53, 80",
			},
		},
		{
			"few words for many parties",
			[]policy.Pod{
				pod("a/one", "10.0.0.1", "app=1"), pod("a/two", "10.0.0.2", "app=2"), pod("b/one", "10.0.0.3", "app=1"),
				pod("b/two", "10.0.0.4", "app=2"), pod("c/one", "10.0.0.5", "app=1"), pod("c/two", "10.0.0.6", "app=2"),
			},
			[]string{`
metadata: {namespace: a, name: own}
spec:
  podSelector: {matchLabels: {app: "1"}}
  ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}], ports: [{port: 1}]}]`, `
metadata: {namespace: a, name: others}
spec:
  podSelector: {matchLabels: {app: "2"}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}]}]`},
			[]string{
				"all pods > a/one: TCP 1", "all pods > the world: everything", "all pods in b > a/two: everything",
				"everyone > all pods in b: everything", "everyone > all pods in c: everything",
			},
		},
		{
			"a pod without an address is in no ipBlock",
			[]policy.Pod{pod("a/x"), pod("a/y", "app=db")},
			[]string{`
metadata: {namespace: a, name: block}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`},
			[]string{"a/y+the world > a/x: everything", "all pods > the world: everything", "the world > a/y: everything"},
		},
	} {
		s := policy.State{Objects: policy.Objects{Pods: tc.pods}}
		for _, text := range tc.policies {
			s.Policies = append(s.Policies, networkPolicy(t, text))
		}
		m := reach.New(s, nil)
		if diff := cmp.Diff(tc.want, lines(m, m.Rows())); diff != "" {
			t.Errorf("%s:\n%s", tc.name, diff)
		}
	}
}

// TestNamesOfOneAddress: if pods of several namespaces have one address, the name of their party includes the
// namespaces. If several versions of one pod have the address, the party has the pod's name.
func TestNamesOfOneAddress(t *testing.T) {
	s := policy.State{}
	s.Pods = []policy.Pod{
		pod("a/x", "10.0.0.1"), pod("b/y", "10.0.0.1"), pod("a/z", "10.0.0.1"),
		pod("a/v", "10.0.0.2", "fd00::2", "app=one"), pod("a/v", "10.0.0.2", "fd00::2", "app=two"),
	}
	deny := networkPolicy(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {matchLabels: {app: one}}}")
	s.Policies = []*networkingv1.NetworkPolicy{deny}
	var names []string
	for _, p := range reach.New(s, nil).Parties {
		if p.Kind == reach.Pods {
			names = append(names, p.Name)
		}
	}
	if diff := cmp.Diff([]string{"a/v", "a/x or b/y or z"}, names); diff != "" {
		t.Error(diff)
	}
}

// TestRules: each rule has the parties that its policy isolates in the rule's direction. A direction without rules has
// a Rule of its own.
func TestRules(t *testing.T) {
	s := policy.State{}
	s.Pods = []policy.Pod{pod("a/web", "10.0.0.1", "app=web"), pod("a/db", "10.0.0.2", "app=db")}
	s.Policies = []*networkingv1.NetworkPolicy{networkPolicy(t, `{metadata: {namespace: a, name: p}, spec: {
		podSelector: {matchLabels: {app: web}}, egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}],
		policyTypes: [Ingress, Egress]}}`)}
	m := reach.New(s, nil)
	names := func(parties []int) (all []string) {
		for _, i := range parties {
			all = append(all, m.Parties[i].Name)
		}
		return all
	}
	var got []string
	for _, r := range m.Rules() {
		got = append(got, fmt.Sprintf("%s: %q with %q", r.Field, names(r.Subjects), names(r.Peers)))
	}
	want := []string{`ingress: ["a/web"] with []`, `egress[0]: ["a/web"] with ["a/db"]`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestCount: a pod with several attachments counts once.
func TestCount(t *testing.T) {
	s := policy.State{}
	s.Pods = []policy.Pod{pod("a/x")}
	for _, a := range []string{"10.0.0.1", "10.0.1.1"} {
		s.Endpoints = append(s.Endpoints, policy.Endpoint{
			Pod: policy.PodRef{Namespace: "a", Name: "x"}, Addresses: []policy.Address{{Addr: netip.MustParseAddr(a)}},
		})
	}
	p := reach.New(s, nil).Parties[0]
	if p.String() != "a/x" || len(p.Addresses) != 2 {
		t.Errorf("%s: %+v", p, p)
	}
}

// TestUnknownAndOff: if an endpoint's pod is unknown, no connection from or to the endpoint is possible. If enforcement
// is off for a pod, no policy isolates the pod.
func TestUnknownAndOff(t *testing.T) {
	attached := func(name, address string, enforcement conf.Enforcement) policy.Endpoint {
		namespace, pod, _ := strings.Cut(name, "/")
		return policy.Endpoint{
			ID: name, Enforcement: enforcement, Pod: policy.PodRef{Namespace: namespace, Name: pod},
			Addresses: []policy.Address{{Addr: netip.MustParseAddr(address)}},
		}
	}
	s := policy.State{
		Objects: policy.Objects{
			Pods:     []policy.Pod{pod("a/off"), pod("a/web")},
			Policies: []*networkingv1.NetworkPolicy{networkPolicy(t, `{metadata: {namespace: a, name: deny}}`)},
		},
		Endpoints: []policy.Endpoint{
			attached("a/off", "10.0.0.1", conf.Off), attached("a/new", "10.0.0.2", conf.Strict),
			attached("a/web", "10.0.0.3", conf.Strict),
		},
		Node: "n",
	}
	m := reach.New(s, nil)
	want := []string{"a/off+a/web > the world: everything", "a/web+the world > a/off: everything"}
	if diff := cmp.Diff(want, lines(m, m.Rows())); diff != "" {
		t.Error(diff)
	}
	i, _ := m.PartyOf(netip.MustParseAddr("10.0.0.2"))
	if p := m.Parties[i]; !p.Unknown || p.Off || p.Name != "a/new" {
		t.Errorf("%+v", p)
	}
}

func TestServices(t *testing.T) {
	web := pod("a/web", "10.0.0.1", "app=web")
	web.Ports = []policy.NamedPort{{Name: "http", Proto: ruleset.TCP, Number: 8080}}
	services := []policy.Service{
		{
			Namespace: "a", Name: "by-selector", Selector: map[string]string{"app": "web"},
			Ports: []policy.ServicePort{
				{Proto: ruleset.TCP, Port: 80, Target: intstr.FromString("http")},
				{Proto: ruleset.TCP, Port: 81, Target: intstr.FromString("gone")},
				{Proto: ruleset.UDP, Port: 53, Target: intstr.FromInt32(5353)},
			},
		},
		{Namespace: "b", Name: "elsewhere", Selector: map[string]string{"app": "web"}},
		{
			Namespace: "a", Name: "by-slices", Ports: []policy.ServicePort{{Name: "x", Proto: ruleset.TCP, Port: 443}},
			Endpoints: []policy.ServiceEndpoint{{
				Address: web.Addresses[0], Ports: []policy.NamedPort{{Name: "x", Proto: ruleset.TCP, Number: 8443}},
			}},
		},
	}
	services = append(services, policy.Service{
		Namespace: "a", Name: "headless", Headless: true, Selector: services[0].Selector,
		Ports: []policy.ServicePort{{Proto: ruleset.TCP, Port: 80, Target: intstr.FromInt32(8080)}},
	}, policy.Service{
		Namespace: "a", Name: "portless", Headless: true, Selector: services[0].Selector,
	}, policy.Service{
		Namespace: "a", Name: "portless-slices", Headless: true,
		Endpoints: []policy.ServiceEndpoint{{Address: web.Addresses[0]}},
	}, policy.Service{
		Namespace: "a", Name: "portless-elsewhere", Headless: true, Selector: map[string]string{"app": "db"},
	})
	m := reach.New(policy.State{Objects: policy.Objects{Pods: []policy.Pod{web}}}, services)
	want := []reach.ServicePort{
		{Service: "a/by-selector", Proto: ruleset.TCP, Port: 80, Targets: []uint16{8080}},
		{Service: "a/by-selector", Proto: ruleset.UDP, Port: 53, Targets: []uint16{5353}},
		{Service: "a/by-slices", Proto: ruleset.TCP, Port: 443, Targets: []uint16{8443}},
		// A headless Service's port isn't translated.
		{Service: "a/headless", Proto: ruleset.TCP, Port: 80, Targets: []uint16{80}},
		{Service: "a/portless"},
		{Service: "a/portless-slices"},
	}
	if diff := cmp.Diff(want, m.Parties[0].Services); diff != "" {
		t.Error(diff)
	}
}

// TestApply: an applied object replaces the object of the same name. An applied Deployment changes its pods. Policies
// can also be deleted by name.
func TestApply(t *testing.T) {
	before := policy.Objects{
		Namespaces: []policy.Namespace{{Name: "a", Labels: map[string]string{"team": "x"}}},
		Pods: []policy.Pod{
			pod("a/web-bcdfgh7-x2x4z", "10.0.0.1", "app=web", "pod-template-hash=bcdfgh7", "old=yes"), pod("a/x", "10.0.0.2"),
		},
		Policies: []*networkingv1.NetworkPolicy{
			networkPolicy(t, `{metadata: {namespace: a, name: one}}`), networkPolicy(t, `{metadata: {namespace: a, name: two}}`),
		},
	}
	file := policy.Objects{
		Namespaces: []policy.Namespace{{Name: "a", Labels: map[string]string{"team": "y"}}, {Name: "b"}},
		Pods:       []policy.Pod{pod("a/x", "app=x"), pod("a/new")},
		Policies: []*networkingv1.NetworkPolicy{
			networkPolicy(t, `{metadata: {namespace: a, name: one}, spec: {policyTypes: [Egress]}}`),
			networkPolicy(t, `{metadata: {namespace: b, name: one}}`),
		},
		Workloads: []policy.Workload{
			{Kind: "Deployment", Namespace: "a", Name: "web", Pod: pod("/", "app=web2")},
			{Kind: "Deployment", Namespace: "a", Name: "none", Pod: pod("/", "app=web2")},
		},
	}
	after, applied := reach.Apply(before, file, policy.Name{Namespace: "a", Name: "two"},
		policy.Name{Namespace: "a", Name: "gone"})
	want := reach.Applied{
		Added:    []string{"NetworkPolicy b/one", "Namespace b"},
		Replaced: []string{"NetworkPolicy a/one", "Namespace a", "Pod a/x", "Deployment a/web"},
		Deleted:  []string{"NetworkPolicy a/two"}, Unused: []string{"Pod a/new", "Deployment a/none"},
		Missing: []string{"NetworkPolicy a/gone"},
	}
	if diff := cmp.Diff(want, applied); diff != "" {
		t.Error(diff)
	}
	pods := []policy.Pod{
		pod("a/web-bcdfgh7-x2x4z", "10.0.0.1", "app=web2", "pod-template-hash=bcdfgh7"), pod("a/x", "10.0.0.2", "app=x"),
	}
	addresses := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(pods, after.Pods, addresses); diff != "" {
		t.Error(diff)
	}
	if len(after.Policies) != 2 || after.Policies[0].Spec.PolicyTypes[0] != "Egress" || len(after.Namespaces) != 2 ||
		after.Namespaces[0].Labels["team"] != "y" {
		t.Errorf("%+v", after)
	}
	if before.Pods[0].Labels["app"] != "web" || before.Namespaces[0].Labels["team"] != "x" || len(before.Policies) != 2 {
		t.Errorf("Apply changed its argument: %+v", before)
	}
}

func TestPorts(t *testing.T) {
	r := func(pairs ...uint16) (all []ruleset.PortRange) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, ruleset.PortRange{First: pairs[i], Last: pairs[i+1]})
		}
		return all
	}
	for _, tc := range []struct {
		ports reach.Ports
		want  string
	}{
		{reach.Ports{}, "nothing"},
		{reach.Every, "everything"},
		{reach.Ports{TCP: r(80, 80, 8000, 8080), UDP: r(53, 53)}, "TCP 80, 8000-8080; UDP 53"},
		{reach.Ports{TCP: r(1, 65535)}, "all TCP"},
		{reach.Ports{Other: true}, "other protocols"},
		{reach.Ports{TCP: r(1, 24, 26, 65535), UDP: r(1, 65535), SCTP: r(1, 65535), Other: true}, "everything but TCP 25"},
		{reach.Ports{TCP: r(1, 65535), UDP: r(1, 65535), SCTP: r(1, 65535)}, "all TCP; all UDP; all SCTP"},
	} {
		if got := tc.ports.String(); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
