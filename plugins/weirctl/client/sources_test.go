package client

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
)

// TestSourcesAgree: the API server, files, and an agent's answer in JSON give the same Services and pods. If a source
// lost a field, explanations from this source would differ.
func TestSourcesAgree(t *testing.T) {
	text, err := os.ReadFile("../testdata/services/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := loadDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]runtime.Object{}
	paths := map[string]string{
		"Pod": "/api/v1/pods", "Service": "/api/v1/services", "Node": "/api/v1/nodes", "Namespace": "/api/v1/namespaces",
		"NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
	}
	for _, document := range bytes.Split(text, []byte("---\n")) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		into := map[string]runtime.Object{
			"Pod": &corev1.Pod{}, "Service": &corev1.Service{}, "Node": &corev1.Node{}, "Namespace": &corev1.Namespace{},
			"NetworkPolicy": &networkingv1.NetworkPolicy{},
		}[kind.Kind]
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			t.Fatal(err)
		}
		all[paths[kind.Kind]] = append(all[paths[kind.Kind]], into)
	}
	server, err := apiServer(t, all, func(path string) bool { return strings.HasSuffix(path, "slices") }).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sent, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	var agent explain.Cluster
	if err := json.Unmarshal(sent, &agent); err != nil {
		t.Fatal(err)
	}
	for i := range server.Pods { // only loadDirectory makes up an address for a pod that has none
		o := &server.Pods[i]
		j := slices.IndexFunc(files.Pods, func(p policy.Pod) bool { return p.Name == o.Name && p.Namespace == o.Namespace })
		if j >= 0 && len(o.Addresses) == 0 {
			o.Addresses, o.NodeName = files.Pods[j].Addresses, files.Pods[j].NodeName
		}
	}
	opts := cmp.Options{
		cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	for name, c := range map[string]explain.Cluster{"the API server": server, "JSON": agent} {
		if diff := cmp.Diff(files.Services, c.Services, opts); diff != "" {
			t.Errorf("Services of files and of %s:\n%s", name, diff)
		}
		if diff := cmp.Diff(files.Pods, c.Pods, opts); diff != "" {
			t.Errorf("pods of files and of %s:\n%s", name, diff)
		}
	}
}
