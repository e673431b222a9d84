package blackbox

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// apiServer returns an API server that has one Node and no pods. The keys of served are KIND.GROUP/VERSION, and the
// values are numbers of objects. The value -1 means that the agent may not list the kind.
func apiServer(t *testing.T, served map[string]int) *httptest.Server {
	t.Helper()
	lists := map[string]string{
		"/api/v1/pods": "PodList", "/api/v1/namespaces": "NamespaceList", "/api/v1/nodes": "NodeList",
		"/apis/networking.k8s.io/v1/networkpolicies": "NetworkPolicyList",
	}
	const node = `{"metadata": {"name": "n1", "uid": "n1", "resourceVersion": "1"},
		"spec": {"podCIDR": "10.88.0.0/24", "podCIDRs": ["10.88.0.0/24"]},
		"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
		kind, ok := lists[r.URL.Path]
		switch {
		case ok && r.URL.Query().Has("sendInitialEvents"): // an old API server refuses this parameter
			w.WriteHeader(http.StatusBadRequest)
			say(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": 400}`)
			return
		case ok && r.URL.Query().Has("watch"):
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		case ok:
			items := map[bool]string{true: node}[kind == "NodeList"]
			say(`{"kind": %q, "apiVersion": %q, "metadata": {"resourceVersion": "1"}, "items": [%s]}`,
				kind, map[bool]string{true: "networking.k8s.io/v1", false: "v1"}[kind == "NetworkPolicyList"], items)
			return
		case r.URL.Path == "/api":
			say(`{"kind": "APIVersions", "versions": ["v1"]}`)
			return
		case r.URL.Path == "/api/v1":
			say(`{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": []}`)
			return
		case r.URL.Path == "/apis":
			var groups []string
			for kind := range served {
				_, gv, _ := strings.Cut(kind, ".")
				group, version, _ := strings.Cut(gv, "/")
				v := fmt.Sprintf(`{"groupVersion": %q, "version": %q}`, gv, version)
				groups = append(groups, fmt.Sprintf(`{"name": %q, "versions": [%s], "preferredVersion": %s}`, group, v, v))
			}
			say(`{"kind": "APIGroupList", "apiVersion": "v1", "groups": [%s]}`, strings.Join(groups, ","))
			return
		}
		for kind, count := range served {
			name, gv, _ := strings.Cut(kind, ".")
			switch resource := strings.ToLower(name) + "s"; r.URL.Path {
			case "/apis/" + gv:
				say(`{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": %q, "resources": [
					{"name": %q, "kind": %q, "namespaced": true, "verbs": ["list"]}]}`, gv, resource, name)
				return
			case "/apis/" + gv + "/" + resource:
				if count < 0 {
					w.WriteHeader(http.StatusForbidden)
					say(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403}`)
					return
				}
				say(`{"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": [%s]}`,
					strings.TrimSuffix(strings.Repeat(`{},`, count), ","))
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		say(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
	}))
	t.Cleanup(server.CloseClientConnections)
	return server
}

// TestPoliciesThatAnAPIServerHas: if the API server may have policies of a kind that weir doesn't enforce, status, log
// and a metric warn of them.
func TestPoliciesThatAnAPIServerHas(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	server := apiServer(t, map[string]int{
		"CiliumNetworkPolicy.cilium.io/v2": 2, "GlobalNetworkPolicy.crd.projectcalico.org/v1": -1,
		"AdminNetworkPolicy.policy.networking.k8s.io/v1alpha1": 0, "SomeNetworkPolicy.example.com/v1": 1,
		"Widget.example.org/v1": 3,
	})
	n := nodetest.NewNode(t, nil)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {token: x}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`, server.URL)
	if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	n.SpawnAgent("--kubeconfig", kubeconfig, "--node-name", "n1", "--encapsulation", "never")
	want := []string{
		"CiliumNetworkPolicy.cilium.io", "GlobalNetworkPolicy.crd.projectcalico.org",
		"SomeNetworkPolicy.example.com",
	}
	var status string
	n.Eventually("the status warns of the policies", func() error {
		var err error
		status, err = n.Ctl("status")
		for _, kind := range want {
			if err == nil && !strings.Contains(status, kind) {
				err = fmt.Errorf("not of %s: %s", kind, status)
			}
		}
		return err
	})
	served, err := metrics()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range want {
		if !strings.Contains(n.AgentLog(), kind) {
			t.Errorf("the log doesn't warn of %s", kind)
		}
		if !strings.Contains(served, fmt.Sprintf("weir_unenforced_policies{kind=%q}", kind)) {
			t.Errorf("there is no metric of %s", kind)
		}
	}
	for _, kind := range []string{"AdminNetworkPolicy", "Widget"} {
		if strings.Contains(status+n.AgentLog(), kind) {
			t.Errorf("there is a warning of %s, of which there is none, or which is no policy:\n%s", kind, status)
		}
	}
}
