package agent

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

func healthy() *policy.Objects {
	client := pod("client", "10.88.1.5")
	client.Labels = map[string]string{"app": "client"}
	return &policy.Objects{
		Namespaces: []policy.Namespace{{Name: "shop"}},
		Pods:       []policy.Pod{pod("web", "10.88.0.2"), client},
		Nodes:      []policy.Node{node("self", "192.0.2.2", "10.88.0.0/24"), node("peer", "192.0.2.3", "10.88.1.0/24")},
		Policies: []*networkingv1.NetworkPolicy{allow("web", &metav1.LabelSelector{}, networkingv1.NetworkPolicyPeer{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
		})},
	}
}

func allow(name string, pods *metav1.LabelSelector,
	from ...networkingv1.NetworkPolicyPeer,
) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *pods,
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: from}},
		},
	}
}

func inKernel(t *testing.T) error {
	t.Helper()
	have := nodetest.Run(t, "ip", "route", "show", "proto", "88")
	var errs []error
	if !strings.Contains(have, "10.88.1.0/24 via 10.88.1.0 dev weir-vxlan") {
		errs = append(errs, fmt.Errorf("no route to peer's pods in\n%s", have))
	}
	if sets := nodetest.Run(t, "ipset", "list"); !strings.Contains(sets, `10.88.1.5 comment "shop/client"`) {
		errs = append(errs, fmt.Errorf("no peer may reach shop/web:\n%s", sets))
	}
	return errors.Join(errs...)
}

// TestFaultsOfObjects: if an object has a problem, the agent logs it once when it begins and once when it ends.
func TestFaultsOfObjects(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	none := map[string]float64{
		`weir_problems{kind="Node"}`: 0, `weir_problems{kind="NetworkPolicy"}`: 0, `weir_problems{kind="Pod"}`: 0,
		"weir_ready":               1,
		`weir_fault{part="nodes"}`: 0, `weir_fault{part="kernel"}`: 0,
	}
	r.wantMetrics(none)
	const came, gone = `level=ERROR msg="part of an object`, `level=INFO msg="no longer: part of an object`
	for i, tc := range []struct {
		name, kind, object, field string
		words                     string // words that the log line contains
		fault                     func(*policy.Objects)
	}{
		{"a Node without podCIDR", "Node", "new", "spec.podCIDRs", "there is no network", func(o *policy.Objects) {
			o.Nodes = append(o.Nodes, node("new", "192.0.2.4"))
		}},
		{"a Node without address", "Node", "new", "status.addresses", "there is no InternalIP", func(o *policy.Objects) {
			o.Nodes = append(o.Nodes, node("new", "", "10.88.2.0/24"))
		}},
		{
			"overlapping podCIDRs", "Node", "twin", "spec.podCIDRs",
			"10.88.1.128/25 doesn't count: it overlaps 10.88.1.0/24 of node peer", func(o *policy.Objects) {
				o.Nodes = append(o.Nodes, node("twin", "192.0.2.4", "10.88.1.128/25"))
			},
		},
		{
			"podCIDRs that overlap this node's", "Node", "all", "spec.podCIDRs",
			"10.88.0.0/23 doesn't count: it overlaps 10.88.0.0/24 of node self", func(o *policy.Objects) {
				o.Nodes = append(o.Nodes, node("all", "192.0.2.4", "10.88.0.0/23"))
			},
		},
		{"a podCIDR that the source couldn't read", "Node", "new", "spec.podCIDRs[1]", "no CIDR", func(o *policy.Objects) {
			o.Problems = append(o.Problems, ruleset.Problem{Object: "Node new", Field: "spec.podCIDRs[1]", Message: "no CIDR"})
		}},
		{"a policy that is too large", "NetworkPolicy", "shop/x", "spec.ingress[0]", "1025 rules", func(o *policy.Objects) {
			o.Policies = append(o.Policies,
				allow("x", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}, policytest.Selectors(0, 1025)...))
		}},
		{
			"an invalid selector of a peer", "NetworkPolicy", "shop/x", "spec.ingress[0].from[0].podSelector",
			"not a valid label selector operator", func(o *policy.Objects) {
				o.Policies = append(o.Policies,
					allow("x", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}, networkingv1.NetworkPolicyPeer{
						PodSelector: &metav1.LabelSelector{
							MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Is"}},
						},
					}))
			},
		},
		{
			"an invalid podSelector", "NetworkPolicy", "shop/x", "spec.podSelector", "every pod in namespace shop is isolated",
			func(o *policy.Objects) {
				o.Policies = append(o.Policies,
					allow("x", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a value!"}}))
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			object := "\"" + tc.kind + " " + tc.object + "\""
			before := r.log.count(came, object, tc.field)
			broken := healthy()
			tc.fault(broken)
			info := fmt.Sprintf("weir_problem_info{field=%q,kind=%q,object=%q}", tc.field, tc.kind, tc.object)
			r.tell(broken, nil)
			r.wantMetrics(map[string]float64{
				info:                                    1,
				`weir_problems{kind="` + tc.kind + `"}`: 1,
				"weir_ready":                            1,
				`weir_fault{part="nodes"}`:              0,
			})
			other := fmt.Sprintf("10.88.0.%d", 10+i)
			for range 3 {
				again := *broken
				again.Pods = append(slices.Clone(broken.Pods), pod("more", other))
				r.tell(&again, nil)
				r.rounds()
			}
			if n := r.log.count(came, object, tc.field, tc.words) - before; n != 1 {
				t.Errorf("it was logged %d times", n)
			}
			if v, err := r.enrol(r.attach("more", other)); err != nil || !strings.Contains(v.Ingress, "shop/web") {
				t.Errorf("another pod is not enrolled as it should be: %+v, %v", v, err)
			}
			if err := inKernel(t); err != nil {
				t.Error(err)
			}
			if s := statusNow(t); len(s.Problems) != 1 || s.Problems[0].Object != tc.kind+" "+tc.object || len(s.Errors) != 0 {
				t.Errorf("the status has problems %v, errors %v", s.Problems, s.Errors)
			}
			over := r.log.count(gone, object, tc.field)
			r.tell(healthy(), nil)
			none[info] = -1
			r.wantMetrics(none)
			r.rounds()
			if n := r.log.count(gone, object, tc.field) - over; n != 1 {
				t.Errorf("its end was logged %d times", n)
			}
		})
	}
}

func statusNow(t *testing.T) *agentapi.Status {
	t.Helper()
	s, err := fetchStatus()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestANodeThatChangesItsAddress(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	r.attach("web", "10.88.0.2")
	still := healthy()
	still.Nodes[1].PodCIDRs = append(still.Nodes[1].PodCIDRs, netip.MustParsePrefix("10.88.4.0/24"))
	r.tell(still, nil)
	const nodes, moves = "weir_node_networks", "weir_node_moves_total"
	r.wantMetrics(map[string]float64{nodes: 2, moves: 0})

	moved := healthy()
	moved.Nodes[1] = node("peer", "192.0.2.33", "10.88.1.0/24", "10.88.4.0/24")
	r.tell(moved, nil)
	r.wantMetrics(map[string]float64{nodes: 2, moves: 1, `weir_problems{kind="Node"}`: 0})
	r.rounds()
	if n := r.log.count("a node has another address", "node=peer", "before=192.0.2.3 ", "now=192.0.2.33"); n != 1 {
		t.Errorf("peer's move was logged %d times", n)
	}
	fdb := nodetest.Run(t, "bridge", "fdb", "show", "dev", "weir-vxlan")
	if !strings.Contains(fdb, "dst 192.0.2.33 ") || strings.Contains(fdb, "dst 192.0.2.3 ") {
		t.Errorf("packets for peer's pods go to\n%s", fdb)
	}
	set := nodetest.Run(t, "nft", "list", "set", "inet", "weir-tunnel", "nodes4")
	if strings.Contains(set, "192.0.2.3,") || !strings.Contains(set, "192.0.2.33") {
		t.Errorf("tunnel packets are still taken from the old address:\n%s", set)
	}
	if err := inKernel(t); err != nil {
		t.Error(err)
	}

	// The API server reports this node's new address before the node has the address. Then the node gets the address.
	both := healthy() // new objects, because the agent owns those that the test has passed to it
	both.Nodes = []policy.Node{node("self", "192.0.2.22", "10.88.0.0/24"), moved.Nodes[1]}
	r.tell(both, nil)
	r.wantMetrics(map[string]float64{`weir_fault{part="nodes"}`: 1, "weir_ready": 1, moves: 1})
	r.rounds()
	if n := r.log.count("level=ERROR", "routes or tunnels to other nodes can't be set up or checked",
		"no link has the node's address 192.0.2.22"); n != 1 {
		t.Errorf("it was logged %d times", n)
	}
	nodetest.Run(t, "ip", "addr", "add", "192.0.2.22/24", "dev", "eth0")
	r.wantMetrics(map[string]float64{`weir_fault{part="nodes"}`: 0, moves: 2})
	r.rounds()
	for _, words := range [][]string{
		{"this node has another address", "before=192.0.2.2 ", "now=192.0.2.22"},
		{"level=INFO", "no longer: routes or tunnels to other nodes"},
	} {
		if n := r.log.count(words...); n != 1 {
			t.Errorf("%q was logged %d times", words, n)
		}
	}
	if link := nodetest.Run(t, "ip", "-d", "link", "show", "weir-vxlan"); !strings.Contains(link, "local 192.0.2.22 ") {
		t.Errorf("tunnels begin at\n%s", link)
	}
	if err := inKernel(t); err != nil {
		t.Error(err)
	}
}

// brittle makes iptables-restore (IPv4, both flavours) fail while the file at the returned path exists. A process
// looks for the file when it gets its first line, because the agent starts such processes in advance.
func brittle(t *testing.T) string {
	t.Helper()
	dir, broken := t.TempDir(), "/run/broken"
	for _, name := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		script := fmt.Sprintf("#!/bin/sh\nread -r first || exit 0\nif [ -e %s ]; then echo no room >&2; exit 4; fi\n"+
			"{ printf '%%s\\n' \"$first\"; cat; } | PATH=${PATH#*:} %s \"$@\"\n", broken, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return broken
}

// TestFaultsOfParts: if a part of the agent fails, the fault is logged, and the kernel keeps its sets and rules.
func TestFaultsOfParts(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	noIPTables := brittle(t)
	r := start(t)
	r.wantMetrics(map[string]float64{"weir_ready": 0, "weir_last_sync_timestamp_seconds": -1})
	r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{"weir_ready": 1, `weir_endpoints{direction="ingress",state="isolated"}`: 1})
	record := filepath.Join("/run/weir/endpoints", "broken:eth0.json")
	live(t, "broken:eth0", "weirx")
	write := func(text string) { // in one step, or the agent could also report the fault of an empty record
		const ready = "/run/record"
		if err := errors.Join(os.WriteFile(ready, []byte(text), 0o600), os.Rename(ready, record)); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	const badMAC = `{"containerID": "broken", "ifName": "eth0", "mac": "?", "hostInterface": "weirx", ` +
		`"addresses": [{"address": "10.88.0.9", "subnet": "10.88.0.0/24"}]}`
	noAddress := strings.NewReplacer(`"?"`, `"0a:58:0a:58:00:09"`, "10.88.0.9", "0.0.0.0").Replace(badMAC)
	absent := strings.NewReplacer(`"?"`, `"0a:58:0a:58:00:09"`, `{"address": "10.88.0.9", "subnet": "10.88.0.0/24"}`,
		"{}").Replace(badMAC)
	elsewhere := healthy()
	elsewhere.Pods = append(elsewhere.Pods, pod("new", "10.88.1.99"))
	elsewhere.Policies = append(elsewhere.Policies, allow("all", &metav1.LabelSelector{}))
	for _, tc := range []struct {
		name  string
		part  part
		words string
		ready float64
		fault func()
		mend  func()
	}{
		{
			"the source", partSource, "broken.yaml", 1,
			func() { r.tell(nil, errors.New("broken.yaml: no YAML")) }, func() { r.tell(healthy(), nil) },
		},
		{
			"the API server", partAPI, "connection refused", 1,
			func() { r.setContact(errors.New("connection refused")) }, func() { r.setContact(nil) },
		},
		{"a record that is no JSON", partRecords, "broken:eth0", 1, func() { write("{") }, func() { remove(record) }},
		{"a record with no MAC", partRecords, "broken:eth0", 1, func() { write(badMAC) }, func() { remove(record) }},
		{
			"a record with an absent address", partRecords, "broken:eth0", 1, func() { write(absent) },
			func() { remove(record) },
		},
		{
			"a record with an address of no pod", partRecords, "broken:eth0", 1, func() { write(noAddress) },
			func() { remove(record) },
		},
		{
			"iptables", partKernel, "no room", 0,
			func() {
				if err := os.WriteFile(noIPTables, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				r.tell(elsewhere, nil)
			},
			func() { remove(noIPTables); r.tell(healthy(), nil) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			came, gone := r.log.count("level=ERROR", parts[tc.part].meaning, tc.words),
				r.log.count("level=INFO", "no longer: "+parts[tc.part].meaning)
			before := r.metrics()
			tc.fault()
			gauge := fmt.Sprintf("weir_fault{part=%q}", tc.part)
			r.wantMetrics(map[string]float64{gauge: 1, "weir_ready": tc.ready})
			r.rounds()
			if n := r.log.count("level=ERROR", parts[tc.part].meaning, tc.words) - came; n != 1 {
				t.Errorf("it was logged %d times", n)
			}
			if s := statusNow(t); !slices.ContainsFunc(s.Errors, func(e string) bool {
				return strings.HasPrefix(e, parts[tc.part].name+": ") && strings.Contains(e, tc.words)
			}) {
				t.Errorf("the status has errors %q", s.Errors)
			}
			if err := inKernel(t); err != nil {
				t.Error(err)
			}
			id := r.attach("web", "10.88.0.2")
			if v, err := r.enrol(id); (err == nil) != (tc.ready == 1) {
				t.Errorf("the answer for a pod is %+v, %v", v, err)
			}
			now := r.metrics()
			failures := now["weir_kernel_failures_total"] - before["weir_kernel_failures_total"]
			if (failures > 0) != (tc.part == partKernel) {
				t.Errorf("%v failures to change the kernel", failures)
			}
			tc.mend()
			r.wantMetrics(map[string]float64{gauge: 0, "weir_ready": 1})
			r.rounds()
			if n := r.log.count("level=INFO", "no longer: "+parts[tc.part].meaning) - gone; n != 1 {
				t.Errorf("its end was logged %d times", n)
			}
			if v, err := r.enrol(id); err != nil {
				t.Errorf("the answer for a pod is %+v, %v", v, err)
			}
		})
	}
}

// live makes the pod's link. Without a link, the pod would count as gone.
func live(t *testing.T, id, other string) {
	t.Helper()
	nodetest.Run(t, "ip", "link", "add", bridge.PortName(id), "type", "veth", "peer", "name", other)
}

// TestEachBrokenRecordIsLogged: if a second record breaks while the first is still broken, the second is logged too.
func TestEachBrokenRecordIsLogged(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{"weir_ready": 1})
	live(t, "one:eth0", bridge.PortName("two:eth0"))
	for i, id := range []string{"one:eth0", "two:eth0"} {
		if err := os.WriteFile("/run/weir/endpoints/"+id+".json", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		r.eventually(id+" is logged", func() error {
			if n := r.log.count("level=ERROR", "endpoint records can't be read", id); n != 1 {
				return fmt.Errorf("%d times", n)
			}
			return nil
		})
		if n := r.log.count("level=ERROR", "endpoint records can't be read"); n != i+1 {
			t.Errorf("%d lines for %d broken records", n, i+1)
		}
	}
}

// TestABrokenRecordClosesItsPod: if a pod's record is broken, the pod is closed and may send nothing.
func TestABrokenRecordClosesItsPod(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	id := r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	entries := func(n float64) {
		t.Helper()
		r.wantMetrics(map[string]float64{
			`weir_set_entries{kind="weir-pods"}`: 1, `weir_set_entries{kind="weir-in"}`: n,
			`weir_set_entries{kind="weir-eg"}`: n,
		})
		r.rounds()
		nodetest.Run(t, "ipset", "test", "weir-pods", "10.88.0.2")
		list := nodetest.Run(t, "nft", "list", "set", "bridge", "weir", "senders4")
		if strings.Contains(list, "10.88.0.2") != (n == 1) {
			t.Errorf("the guard: %s", list)
		}
	}
	entries(1)
	if err := os.WriteFile("/run/weir/endpoints/"+id+".json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	entries(0)
	r.attach("web", "10.88.0.2")
	entries(1)
}

func TestMetrics(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	if _, err := r.enrol(r.attach("web", "10.88.0.2")); err == nil {
		t.Error("a pod was enrolled without a state")
	}
	r.wantMetrics(map[string]float64{
		"weir_ready": 0, `weir_enrolment_duration_seconds_count{result="unavailable"}`: 1,
		`weir_enrolment_duration_seconds_count{result="enrolled"}`: 0,
		`weir_endpoints{direction="ingress",state="closed"}`:       1, `weir_endpoints{direction="egress",state="closed"}`: 1,
	})
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{
		"weir_ready": 1, "weir_policies": 1, `weir_info{iptables="nft"}`: 1,
		`weir_endpoints{direction="ingress",state="isolated"}`: 1, `weir_endpoints{direction="ingress",state="closed"}`: 0,
		`weir_endpoints{direction="egress",state="open"}`: 1,
		`weir_sets{kind="weir-in"}`:                       1, `weir_sets{kind="weir-sel"}`: 1,
		`weir_set_entries{kind="weir-sel"}`: 1, `weir_set_entries{kind="weir-pods"}`: 1,
		`weir_set_entries{kind="weir-networks"}`: 2, `weir_classes{direction="ingress"}`: 2,
		`weir_classes{direction="egress"}`: 1,
		"weir_kernel_failures_total":       0, "weir_connections_cut_total": 0,
	})
	if v, err := r.enrol(endpoint.ID("shop.web", "eth0")); err != nil || v.Egress != "open" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, id := range []string{r.attach("stranger", "10.88.0.3"), "nobody:eth0"} { // an unknown pod, a missing record
		if _, err := r.enrol(id); err == nil {
			t.Errorf("%s was enrolled", id)
		}
	}
	if _, err := r.enrol("../x:eth0"); err == nil {
		t.Error("a path is no ID")
	}
	r.wantMetrics(map[string]float64{
		`weir_enrolment_duration_seconds_count{result="enrolled"}`:    1,
		`weir_enrolment_duration_seconds_count{result="unknown"}`:     2,
		`weir_enrolment_duration_seconds_count{result="unavailable"}`: 1,
		`weir_enrolment_duration_seconds_count{result="invalid"}`:     1,
		`weir_endpoints{direction="ingress",state="closed"}`:          1,
	})
	m := r.metrics()
	if m["weir_sync_duration_seconds_count"] < 1 || m["weir_sync_duration_seconds_sum"] <= 0 ||
		m["weir_kernel_changes_total"] < 1 || m["weir_last_sync_timestamp_seconds"] < 1e9 || m["go_goroutines"] < 1 {
		t.Errorf("metrics: %v", m)
	}

	repairs := m["weir_kernel_repairs_total"]
	nodetest.Run(t, "iptables-nft", "-w", "-t", "mangle", "-F", "WEIR-INGRESS")
	r.eventually("the repair is counted", func() error {
		if now := r.metrics()["weir_kernel_repairs_total"]; now <= repairs {
			return fmt.Errorf("%v repairs after %v", now, repairs)
		}
		return nil
	})

	// The metrics name only a few of many broken objects.
	broken := healthy()
	for i := range 3 * maxProblems {
		broken.Nodes = append(broken.Nodes, node(fmt.Sprintf("new-%03d", i), fmt.Sprint("198.51.100.", i+1)))
	}
	r.tell(broken, nil)
	r.wantMetrics(map[string]float64{`weir_problems{kind="Node"}`: 3 * maxProblems})
	named := 0
	for name := range r.metrics() {
		if strings.HasPrefix(name, "weir_problem_info{") {
			named++
		}
	}
	if named != maxProblems {
		t.Errorf("%d problems are named, want %d", named, maxProblems)
	}
	resp, err := http.Post("http://"+healthAddress+"/metrics", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %s", resp.Status)
	}
}

// TestAFieldWithSeveralProblemsIsNamedOnce: if a field has several problems, it has one metric. Prometheus refuses
// all metrics if two are equal.
func TestAFieldWithSeveralProblemsIsNamedOnce(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	o := healthy()
	o.Nodes = append(o.Nodes, node("two", "192.0.2.4", "10.88.0.0/25", "10.88.1.0/25"))
	double := pod("double", "10.88.1.5")
	double.Addresses = append(double.Addresses, netip.MustParseAddr("10.88.1.6"))
	o.Pods = append(o.Pods, double, pod("triple", "10.88.1.6"))
	r.tell(o, nil)
	r.wantMetrics(map[string]float64{
		`weir_problems{kind="Node"}`: 2, `weir_problems{kind="Pod"}`: 4,
		`weir_problem_info{field="spec.podCIDRs",kind="Node",object="two"}`:        1,
		`weir_problem_info{field="status.podIPs",kind="Pod",object="shop/double"}`: 1,
	})
}

// TestHeartbeatThatCantBeWritten: while the agent can't renew its heartbeat, its status says so, because the plugin
// will treat the node as a node without an agent. The agent still enforces the policies.
func TestHeartbeatThatCantBeWritten(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	const file = endpoint.Dir + "/heartbeat"
	beat := func() error {
		s.heartbeat.last = time.Time{}
		s.reconcile(t.Context(), netfilter.Trust)
		return s.status.Load().faults[partHeartbeat]
	}
	if err := errors.Join(beat(), os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := beat(); err == nil || !s.status.Load().ready {
		t.Errorf("the heartbeat can't be written: the fault is %v, ready: %v", err, s.status.Load().ready)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := beat(); err != nil {
		t.Errorf("the heartbeat can be written again: %v", err)
	}
}

// TestFullTable: the connection table counts as full if it has no room now, or if the kernel has evicted connections
// since the last look.
func TestFullTable(t *testing.T) {
	var w tableWatch
	for i, tc := range []struct {
		load conntrack.Load
		full bool
	}{
		{conntrack.Load{Entries: 9, Most: 10, Evicted: 7}, false}, // evicted before the agent's start
		{conntrack.Load{Entries: 9, Most: 10, Evicted: 7}, false},
		{conntrack.Load{Entries: 9, Most: 10, Evicted: 8}, true},
		{conntrack.Load{Entries: 9, Most: 10, Evicted: 8}, false},
		{conntrack.Load{Entries: 10, Most: 10, Evicted: 8}, true},
		{conntrack.Load{Entries: 1, Most: 10, Evicted: 8}, false},
		{conntrack.Load{Entries: 11, Most: 10, Evicted: 8}, true}, // the limit was lowered
		{conntrack.Load{}, false},                                 // no connection tracking
	} {
		if err := w.compare(tc.load); (err != nil) != tc.full {
			t.Errorf("look %d: %v, want full: %v", i, err, tc.full)
		}
	}
}
