package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/ruleset"
)

func apiServer(t *testing.T, objects map[string][]runtime.Object, forbid func(path string) bool) *API {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if forbid(r.URL.Path) {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(metav1.Status{
				TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Message: "forbidden",
				Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden,
			})
			return
		}
		all := objects[r.URL.Path]
		if strings.Contains(r.URL.Path, "/namespaces/") && strings.Count(r.URL.Path, "/") == 4 {
			_ = json.NewEncoder(w).Encode(all[0])
			return
		}
		answer := map[string]any{"kind": "List", "apiVersion": "v1", "metadata": map[string]any{}, "items": []any{}}
		for kind, path := range map[string]string{
			"PodList": "/pods", "NamespaceList": "/namespaces", "NodeList": "/nodes", "ServiceList": "/services",
		} {
			if strings.HasSuffix(r.URL.Path, path) {
				answer["kind"] = kind
			}
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "networkpolicies"):
			answer["kind"], answer["apiVersion"] = "NetworkPolicyList", "networking.k8s.io/v1"
		case strings.HasSuffix(r.URL.Path, "endpointslices"):
			answer["kind"], answer["apiVersion"] = "EndpointSliceList", "discovery.k8s.io/v1"
		}
		at := len(r.URL.Query().Get("continue"))
		if at < len(all) {
			answer["items"] = all[at : at+1]
		}
		if at+1 < len(all) {
			answer["metadata"] = map[string]any{"continue": strings.Repeat("x", at+1)}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	api, err := NewAPI(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func named(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func someObjects() map[string][]runtime.Object {
	port := int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: named("ns-1", "web-x"),
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}},
		Ports:      []discoveryv1.EndpointPort{{Port: &port}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	pods := []runtime.Object{
		&corev1.Pod{ObjectMeta: named("ns-1", "a")}, &corev1.Pod{ObjectMeta: named("ns-1", "b")},
	}
	policies := []runtime.Object{&networkingv1.NetworkPolicy{ObjectMeta: named("ns-1", "deny")}}
	services := []runtime.Object{&corev1.Service{
		ObjectMeta: named("ns-1", "web"),
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}},
	}}
	return map[string][]runtime.Object{
		"/api/v1/pods": pods, "/api/v1/namespaces/ns-1/pods": pods,
		"/apis/networking.k8s.io/v1/networkpolicies":                 policies,
		"/apis/networking.k8s.io/v1/namespaces/ns-1/networkpolicies": policies,
		"/api/v1/namespaces":                       {&corev1.Namespace{ObjectMeta: named("", "ns-1")}},
		"/api/v1/namespaces/ns-1":                  {&corev1.Namespace{ObjectMeta: named("", "ns-1")}},
		"/api/v1/services":                         services,
		"/api/v1/namespaces/ns-1/services":         services,
		"/apis/discovery.k8s.io/v1/endpointslices": {slice},
	}
}

// TestLoadKubernetes: if a list has several pages, every page is read.
func TestLoadKubernetes(t *testing.T) {
	api := apiServer(t, someObjects(), func(string) bool { return false })
	c, err := api.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Pods) != 2 || len(c.Policies) != 1 || len(c.Namespaces) != 1 || len(c.Services) != 1 || c.Gaps != nil {
		t.Fatalf("%+v", c)
	}
	if s := c.Services[0]; len(s.Endpoints) != 1 || s.Endpoints[0].Ports[0].Number != 8080 || !s.Endpoints[0].Ready {
		t.Errorf("%+v", s)
	}
}

// TestTenant: if the user may read only one namespace, Load reads the objects of this namespace, and Gaps names what
// the user may not read. If the user may read nothing, Load returns an error.
func TestTenant(t *testing.T) {
	tenant := func(path string) bool {
		return !strings.HasSuffix(path, "/namespaces/ns-1/pods") && !strings.HasSuffix(path, "/ns-1/networkpolicies")
	}
	api := apiServer(t, someObjects(), tenant)
	c, err := api.Load(t.Context(), "ns-1", "ns-1", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"you may list pods only in ns-1, so those of other namespaces are missing",
		"you may list networkpolicies only in ns-1, so those of other namespaces are missing",
		"you may not read namespaces, so weirctl doesn't know the labels of namespaces",
		"you may not read nodes, so weirctl doesn't know which addresses are nodes' own",
		"you may not read services, so weirctl doesn't know which pods Services lead to",
		"you may not read endpointslices, so weirctl doesn't know which pods behind Services are ready",
	}
	if len(c.Pods) != 2 || len(c.Policies) != 1 || !slices.Equal(c.Gaps, want) {
		t.Errorf("%d pods, %d policies\n%s", len(c.Pods), len(c.Policies), strings.Join(c.Gaps, "\n"))
	}
	_, err = apiServer(t, nil, func(string) bool { return true }).Load(t.Context(), "ns-1")
	if err == nil || !strings.Contains(err.Error(), "kubectl auth can-i list pods --namespace ns-1") {
		t.Errorf("no rights at all: %v", err)
	}
}

// TestLoadDirectory: if the manifests of pods have no addresses, the pods get made-up addresses. Gaps names a broken
// file. An empty or missing directory is an error.
func TestLoadDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pods.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ns-1}\n---\n" +
			"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: ns-1}\n" +
			"spec: {template: {metadata: {labels: {app: web}}, spec: {containers: []}}}\n---\n" +
			"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.0.0.0/24]}\n",
		"policy.yaml": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n" +
			"metadata: {name: deny, namespace: ns-1}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
		"service.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ns-1}\n" +
			"spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n",
		"broken.yaml": "kind: NetworkPolicy\n\tapiVersion: x\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := loadDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Pods) != 2 || len(c.Services) != 1 || c.Services[0].Ports[0].Target.StrVal != "http" {
		t.Fatalf("%+v", c)
	}
	for _, p := range c.Pods {
		if len(p.Addresses) != 1 || !c.IsInvented(p.Addresses[0]) {
			t.Errorf("%s has %v", p.Name, p.Addresses)
		}
	}
	// Each Node needs a name: a Node without a name would stand for the agent's own Node.
	for _, n := range c.Nodes {
		if n.Name == "" || len(n.PodCIDRs) == 0 {
			t.Errorf("%+v", c.Nodes)
		}
	}
	e, err := explain.Explain(c, explain.Query{
		From: explain.Ref{Kind: explain.EndPod, Namespace: "ns-1", Name: "a"},
		To:   explain.Ref{Kind: explain.EndPod, Namespace: "ns-1", Name: "web"},
		Port: explain.Port{Number: 80, Proto: ruleset.TCP},
	})
	if err != nil || e.Result != explain.Dropped || e.Paths[0].To.Node != "" {
		t.Errorf("%v, %+v", err, e)
	}
	if len(c.Gaps) != 1 || !strings.Contains(c.Gaps[0], "broken.yaml") {
		t.Errorf("%q", c.Gaps)
	}
	if _, err := loadDirectory(t.Context(), t.TempDir()); err == nil {
		t.Error("an empty directory is no error")
	}
	if _, err := loadDirectory(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a missing directory is no error")
	}
}

// TestWrongSource: if a source is wrong, the command's error is one line that says what to do.
func TestWrongSource(t *testing.T) {
	_, err := (&Source{Place: "etcd"}).Load(t.Context())
	if code, text := Code(err); code != ExitUsage || text != `--source "etcd": must be agent, kubernetes or dir:PATH` {
		t.Errorf("%d, %s", code, text)
	}
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err = (&Source{Place: "kubernetes"}).Load(t.Context())
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("%v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	api := apiServer(t, nil, func(string) bool { return false })
	if _, err := api.Load(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
