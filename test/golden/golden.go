// Package golden reads the test states of policy/testdata, and compares texts with golden files.
package golden

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/manifests"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each runs f in a subtest for each state of policy/testdata. root is the path to the repository's root.
func Each(t *testing.T, root string, f func(t *testing.T, name string, state policy.State)) {
	t.Helper()
	cases, err := filepath.Glob(filepath.Join(root, "policy/testdata/*.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		t.Run(name, func(t *testing.T) { f(t, name, Load(t, path)) })
	}
}

// Compare compares the text with the golden file. With the flag -update, it writes the file instead.
func Compare(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-%s +now (go test -update writes it anew)\n%s", path, diff)
	}
}

// Load reads the file's objects, and returns the state of the node (OnNode).
func Load(t testing.TB, path string) policy.State {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return OnNode(Objects(t, data))
}

// Objects parses YAML documents. It doesn't validate NetworkPolicies, so that tests can have invalid policies.
func Objects(t testing.TB, data []byte) policy.Objects {
	t.Helper()
	var all policy.Objects
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var np networkingv1.NetworkPolicy
		if err := yaml.Unmarshal(doc, &np); err == nil && np.Kind == "NetworkPolicy" {
			all.Policies = append(all.Policies, &np)
			continue
		}
		o, err := manifests.Parse("test", doc)
		if err != nil {
			t.Fatal(err)
		}
		all.Namespaces = append(all.Namespaces, o.Namespaces...)
		all.Pods = append(all.Pods, o.Pods...)
	}
	return all
}

// OnNode returns the state of a node with these objects. Pods with addresses in 10.88.0.0/24 or fd00:10:88::/64 are on
// the node. A pod with the label "attached" has a chained attachment. The label's value is the name of the node's link
// (LINK), or of a bridge and its port (BRIDGE.PORT).
func OnNode(objects policy.Objects) policy.State {
	state := policy.State{Objects: objects}
	for _, p := range objects.Pods {
		var addresses []policy.Address
		for _, a := range p.Addresses {
			for _, subnet := range []netip.Prefix{
				netip.MustParsePrefix("10.88.0.0/24"),
				netip.MustParsePrefix("fd00:10:88::/64"),
			} {
				if subnet.Contains(a) && !p.HostNetwork {
					addresses = append(addresses, policy.Address{Addr: a, Subnet: subnet})
				}
			}
		}
		if len(addresses) > 0 {
			e := policy.Endpoint{
				ID: p.Namespace + "." + p.Name + ":eth0", Enforcement: conf.Strict,
				Pod: policy.PodRef{Namespace: p.Namespace, Name: p.Name, UID: p.UID}, Addresses: addresses,
			}
			if attached, ok := p.Labels["attached"]; ok {
				e.Chained, e.HostIf = true, attached
				if bridge, port, ok := strings.Cut(attached, "."); ok {
					e.BridgeIf, e.HostIf = bridge, port
				}
			}
			state.Endpoints = append(state.Endpoints, e)
		}
	}
	return state
}
