package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

// TestExplainServices: explanations name the endpoints to which kube-proxy and DNS lead, and the connections that
// kube-proxy drops.
func TestExplainServices(t *testing.T) {
	manifest, err := os.ReadFile("testdata/services/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	inDirectory(t, manifest)
	var text strings.Builder
	for _, question := range []string{
		"shop/web svc/shop/headless:80",   // the Service is headless, so nothing translates the port
		"shop/web svc/shop/headless:5432", // the Service lacks this port
		"shop/web svc/shop/headless:sql",  // sql is the name of a port in the Service's SRV record
		"shop/web svc/shop/headless",
		"shop/web svc/shop/headless:http",
		"shop/web svc/shop/portless",
		"shop/web svc/shop/portless:5432",
		"shop/web svc/shop/db", // the Service has only IPv4, and one of its four pods is ready
		"shop/web svc/shop/db:/icmp",
		"203.0.112.7 203.0.113.6:80", // a node forwards the connection, so the pod may see the node's address
		"world svc/shop/ranges",      // the sender is in no ipBlock of any policy
		"203.0.112.7 node/n1:30443",
		"203.0.112.7 node/n2:30443",
		"203.0.112.7 10.9.0.1:30444", // the node n1 forwards the connection
		"203.0.112.7 node/n2:30444",
		"shop/web node/n2:30444",   // web's node sends the packet under its own address
		"shop/web node/n2:30443",   // the same, but n2 forwards the packet only to pods on n2
		"shop/picky node/n2:30444", // picky's egress policy allows db, and not node n2
		"shop/web 10.9.0.1:30444",  // kube-proxy on web's own node translates the nodePort before weir checks the packet
		"node/n1 node/n2:30444",
		"shop/web node/n2:8080",   // the same with a hostPort: web's node sends the packet under its own address
		"shop/picky node/n2:8080", // picky's egress policy sees the address of node n2, not the pod's
		"shop/db node/n2:8080",    // the client is on the node with the hostPort
		"node/n1 node/n2:8080",
		"shop/host shop/front:22",     // host uses the network of n1, which sends through the tunnel under another address
		"shop/host 203.0.113.9:22",    // the tunnel leads to pods only
		"shop/floating node/n2:30444", // it is unknown on which node the pod is
		"shop/web svc/shop/local",     // the sender's node has no endpoint
		"node/n2 svc/shop/local",
		"203.0.112.7 203.0.113.5:443", // the sender is outside of loadBalancerSourceRanges
		"198.51.100.7 203.0.113.5:443",
		"world 203.0.113.5:443",
		"shop/web 203.0.113.6:80", // kube-proxy on web's own node translates the externalIP, and masquerades
		"shop/floating 203.0.113.6:80",
		"shop/web 203.0.113.6:8443", // another Service has the same externalIP
		"shop/web 203.0.113.6:81",
		"shop/web 203.0.113.6",
		"shop/web 10.9.0.2:22", // no Service has this port, so the packet goes to the node with the address
		"shop/web 10.9.0.2:8443",
		"10.9.0.2 shop/db:5432",      // the sender is a node, although a Service also has the address
		"shop/picky 203.0.113.8:443", // kube-proxy doesn't translate an address with ipMode: Proxy
		"198.51.100.7 203.0.113.8:443",
		"world shop/db:5432",  // 2000::/3 has all public IPv6 addresses
		"shop/db shop/web:80", // a policy in another namespace than default
	} {
		out, code, message := runExplain(t, append(strings.Fields(question), "--source", "dir:manifests")...)
		fmt.Fprintf(&text, "$ weirctl explain %s\n%s%sexit code %d\n\n", question, out, message, code)
	}
	first, _, _ := strings.Cut(text.String(), "exit code")
	first = strings.Replace(first, "headless:80\n", "headless:80 --source dir:manifests\n", 1)
	docs, err := os.ReadFile(here + "/../../docs/explain.md")
	if err != nil || !strings.Contains(string(docs), indented(first)) {
		t.Errorf("docs/explain.md doesn't show\n%s%v", first, err)
	}
	golden.Compare(t, here+"/testdata/services/explain.txt", text.String())
}

// TestServicesOfAKubeAgent: an agent that watches the API server knows no Services. matrix and diff then ask the API
// server for them, or say that no Service is shown.
func TestServicesOfAKubeAgent(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	c := explain.Cluster{Node: "n1", Objects: policy.Objects{
		Pods: []policy.Pod{{
			Namespace: "shop", Name: "db", NodeName: "n2", Labels: map[string]string{"app": "db"},
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.2")},
		}},
		Nodes: []policy.Node{{Name: "n2", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}},
	}}
	actAsAgent(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(c) }))
	forbidden := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case forbidden:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"kind": "Status", "apiVersion": "v1", "reason": "Forbidden", "code": 403}`)
		case strings.HasSuffix(r.URL.Path, "/services"):
			_, _ = io.WriteString(w, `{"kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": [
				{"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "db"},
				 "ports": [{"port": 80, "targetPort": 5432}]}},
				{"metadata": {"name": "portless", "namespace": "shop"},
				 "spec": {"clusterIP": "None", "selector": {"app": "db"}}}]}`)
		default:
			_, _ = io.WriteString(w, `{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": [
				{"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
				 "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.1.2"]}], "ports": [{"port": 5432, "protocol": "TCP"}]},
				{"metadata": {"name": "portless-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "portless"}},
				 "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.1.2"]}]}]}`)
		}
	}))
	defer server.Close()
	dir := t.TempDir()
	kubeconfig, policies := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "new.yaml")
	for path, text := range map[string]string{
		kubeconfig: "{clusters: [{name: c, cluster: {server: '" + server.URL + "'}}], contexts: [{name: c, context: " +
			"{cluster: c}}], current-context: c}",
		policies: "{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: db, namespace: shop}, spec: " +
			"{podSelector: {}, ingress: [{ports: [{port: 5432}]}]}}",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args string) string {
		root, out := rootCommand(), &strings.Builder{}
		root.SetOut(out)
		root.SetErr(out)
		root.SetArgs(strings.Fields(args))
		if code, text := client.Code(root.ExecuteContext(t.Context())); code == client.ExitError {
			t.Errorf("%s: %s", args, text)
		}
		return out.String()
	}
	const matrix = "matrix --source agent"
	t.Setenv("KUBECONFIG", kubeconfig)
	for args, want := range map[string]string{
		matrix: "  shop/db:80, shop/portless\n", "diff --source agent -f " + policies: "  shop/portless\n",
	} {
		if out := run(args); !strings.Contains(out, want) || strings.Contains(out, "no Service") {
			t.Errorf("%s:\n%s", args, out)
		}
	}
	if out := run(matrix + " --to 10.96.0.10"); !strings.Contains(out, "shop/db") || strings.Contains(out, "note") {
		t.Errorf("--to, with the address of a Service:\n%s", out)
	}
	forbidden = true
	if out := run(matrix); !strings.Contains(out, "note: no Service is shown: ") {
		t.Errorf("if the API server forbids it:\n%s", out)
	}
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none"))
	if out := run(matrix); !strings.Contains(out, "note: no Service is shown, because the agent knows none") {
		t.Errorf("without an API server:\n%s", out)
	}
}

// TestAddressesOfServices: matrix treats a Service's address as the Service. It refuses an address that several
// Services share, and treats an address of a node as the node.
func TestAddressesOfServices(t *testing.T) {
	at := netip.MustParseAddr
	shared, node := at("203.0.113.6"), at("10.9.0.1")
	c := explain.Cluster{Services: []policy.Service{
		{Namespace: "shop", Name: "a", ClusterIPs: []netip.Addr{at("10.96.0.1")}, External: []netip.Addr{shared, node}},
		{Namespace: "shop", Name: "b", External: []netip.Addr{shared}},
	}}
	c.Nodes = []policy.Node{{Name: "n1", Addresses: []netip.Addr{node}}}
	for to, want := range map[string]string{
		"10.96.0.1":   "shop/a [] <nil>",
		"203.0.113.6": "203.0.113.6 [] 203.0.113.6 is the address of several Services: name one of shop/a, shop/b",
		"10.9.0.1": "10.9.0.1 [10.9.0.1 is an address of a node, and also leads to shop/a: ask about a Service by its " +
			"name] <nil>",
	} {
		n := narrow{to: to}
		_, notes, err := n.resolve(c)
		if got := fmt.Sprint(n.to, " ", notes, " ", err); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", to, got, want)
		}
	}
	n := narrow{from: "10.9.0.1"}
	if _, notes, err := n.resolve(c); err != nil || !strings.Contains(strings.Join(notes, " "), "aren't checked") {
		t.Errorf("from a node: %q, %v", notes, err)
	}
}
