package blackbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func nodes(own ...string) string {
	return nodeManifest("self", 0, "192.0.2.2", strings.Join(own, " ")) +
		nodeManifest("other", 0, "192.0.2.1", "10.88.0.0/24")
}

// clustered makes a node n whose agent writes the runtime's configuration. stale is the same node, but with an older
// configuration, which has the keys in former. own has the Node's podCIDRs.
func clustered(t *testing.T, former nodetest.Conf, own ...string) (n, stale *nodetest.Node) {
	t.Helper()
	stale = nodetest.NewNode(t, former)
	with := *stale
	n = &with
	n.ConfDir = t.TempDir()
	n.Manifest("pods.yaml", pods("x", "a", "b"))
	n.Manifest("nodes.yaml", nodes(own...))
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self", "--conflist", conflist(n))
	n.Eventually("the agent has written the runtime's configuration", func() error {
		_, err := os.Stat(conflist(n))
		return err
	})
	return n, stale
}

func conflist(n *nodetest.Node) string { return filepath.Join(n.ConfDir, "10-weir.conflist") }

// TestAConfigurationOfAFormerLife: if the configuration is outdated, ADD fails, and assigns no address. After the agent
// has written the present configuration, ADD succeeds.
func TestAConfigurationOfAFormerLife(t *testing.T) {
	good := []any{nodetest.Conf{"subnet": "10.99.7.0/24"}}
	for name, tc := range map[string]struct {
		former nodetest.Conf
		own    []string
		says   string
	}{
		"subnet":    {nodetest.Conf{}, []string{"10.99.7.0/24"}, "10.99.7.0/24"},
		"other MTU": {nodetest.Conf{"ranges": good, "mtu": 1400}, []string{"10.99.7.0/24"}, "1450"},
		"no MTU":    {nodetest.Conf{"ranges": good}, []string{"10.99.7.0/24"}, "1450"},
		"family": {
			nodetest.Conf{"ranges": good, "mtu": 1450},
			[]string{"10.99.7.0/24", "fd00:99:7::/64"},
			"fd00:99:7::/64",
		},
		"enforcement": {
			nodetest.Conf{"ranges": good, "mtu": 1450, "enforcement": "closed"},
			[]string{"10.99.7.0/24"},
			"strict",
		},
		"closed": {nodetest.Conf{"enforcement": "closed"}, []string{"10.99.7.0/24"}, "10.99.7.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			if !nodetest.IsolatedWithWeir(t) {
				return
			}
			n, stale := clustered(t, tc.former, tc.own...)
			if err := os.Remove(conflist(n)); err != nil {
				t.Fatal(err)
			}
			p, err := stale.TryAddPod("x", "a")
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "out of date") {
				t.Fatalf("a pod with address %s is let in, or the error doesn't say %q: %v", p.IP, tc.says, err)
			}
			written, err := os.ReadFile(conflist(n))
			if err != nil || !strings.Contains(string(written), "10.99.7.0/24") {
				t.Errorf("the present configuration isn't written: %v\n%s", err, written)
			}
			if held := addresses(t); held != "" {
				t.Errorf("what was refused holds addresses: %s", held)
			}
			if p, err = n.TryAddPod("x", "a"); err != nil || !strings.HasPrefix(p.IP, "10.99.7.") {
				t.Errorf("by the present configuration: %s, %v", p.IP, err)
			}
		})
	}
}

// TestAConfigurationWithoutAPodCIDR: while the Node has no podCIDR of its own, no pod starts with the old
// configuration. For example, a Node has no podCIDR after it was deleted and has registered again. Meanwhile another
// Node may have got the old podCIDR.
func TestAConfigurationWithoutAPodCIDR(t *testing.T) {
	for name, nodes := range map[string]string{
		"none": nodes(),
		"of another node": nodeManifest("self", 1, "192.0.2.2", "10.88.0.0/24") +
			nodeManifest("other", 0, "192.0.2.1", "10.88.0.0/24"),
		"no Node": nodeManifest("other", 0, "192.0.2.1", "10.99.0.0/24"),
	} {
		t.Run(name, func(t *testing.T) {
			if !nodetest.IsolatedWithWeir(t) {
				return
			}
			n := nodetest.NewNode(t, nil)
			n.Manifest("pods.yaml", pods("x", "a"))
			n.Manifest("nodes.yaml", nodes)
			n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self", "--conflist", conflist(n))
			n.Eventually("the agent is ready", func() error {
				_, err := n.Ctl("status")
				return err
			})
			p, err := n.TryAddPod("x", "a")
			if err == nil || !strings.Contains(err.Error(), "no podCIDR") {
				t.Fatalf("a pod with address %s is let in, or the error doesn't say why: %v", p.IP, err)
			}
			if held := addresses(t); held != "" {
				t.Errorf("what was refused holds addresses: %s", held)
			}
		})
	}
}

// TestPodsFromBeforeAChangeOfPodCIDRs: if a Node's podCIDRs change, its running pods can still be reached.
func TestPodsFromBeforeAChangeOfPodCIDRs(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _ := clustered(t, nil, "10.99.6.0/24")
	a := n.AddPod("x", "a")
	n.Serve(a.Netns, "tcp", ":80")
	n.Manifest("nodes.yaml", nodes("10.99.7.0/24"))
	n.Eventually("the status says which pods have addresses of before", func() error {
		if out, err := n.Ctl("status"); err != nil || !strings.Contains(out, "x/a") ||
			!strings.Contains(out, "10.99.7.0/24") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.Eventually("the configuration is the present one", func() error {
		if written, err := os.ReadFile(conflist(n)); err != nil || !strings.Contains(string(written), "10.99.7.0/24") {
			return errors.Join(err, errors.New(string(written)))
		}
		return nil
	})
	b := n.AddPod("x", "b")
	if !strings.HasPrefix(b.IP, "10.99.7.") {
		t.Errorf("a new pod has %s", b.IP)
	}
	n.KillAgent()
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self", "--conflist", conflist(n))
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	n.Reach(b, a.IP+":80", true)
}

// TestControlAddressesOfAnotherPlugin: if another plugin attaches a pod, the pod's address may be outside of the node's
// podCIDRs.
func TestControlAddressesOfAnotherPlugin(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n, other := clustered(t, nil, "10.99.7.0/24")
	other.ConfigureList(nodetest.Conf{"type": "ptp", "ipam": nodetest.Conf{
		"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.77.0.0/24"}}},
	}}, nodetest.Conf{"type": "weir"})
	if _, err := other.TryAddPod("x", "a"); err != nil {
		t.Error(err)
	}
	n.AddPod("x", "b")
}
