package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// newConflistAgent returns an agent that knows the node's address and MTU. The agent doesn't run. It writes the network
// configuration when the test calls writeConflist.
func newConflistAgent(t *testing.T) *agent {
	t.Helper()
	nodetest.Outside(t)
	driver, err := iptables.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.Close() })
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(links.Close)
	a := newAgent(Options{
		Log: slog.New(slog.DiscardHandler),
		Node: NodeOptions{
			Name: "self", Overlay: overlay.Options{Encapsulation: overlay.Always},
			Conflist: filepath.Join(t.TempDir(), "10-weir.conflist"),
		},
	}, driver, links)
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
	a.planOverlay()
	return a
}

// TestConflist: if a write fails, the runtime still finds either the whole configuration or none.
func TestConflist(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	path := a.Node.Conflist
	configurations := func() []string { // the files that libcni (ConfFiles) takes for configurations
		var names []string
		for _, ext := range []string{".conf", ".conflist", ".json"} {
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if filepath.Ext(e.Name()) == ext && !e.IsDir() {
					names = append(names, e.Name())
				}
			}
		}
		return names
	}
	// With a directory of this name, the temporary file can be written, but not renamed.
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.writeConflist(); err == nil {
		t.Error("a directory was replaced")
	}
	if got := configurations(); len(got) > 0 {
		t.Errorf("half written, the runtime would take it: %v", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.writeConflist(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"10-weir.conflist"}, configurations()); diff != "" {
			t.Error(diff)
		}
	}
}

// TestConflistOfOthers: if the runtime would use another network's file, that is a fault until the file is gone. A file
// that the runtime doesn't use is no fault. Neither is a configuration of Multus whose cluster network is weir.
func TestConflistOfOthers(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(filepath.Dir(a.Node.Conflist), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const flannel = `{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}`
	write("10-flannel.conflist", flannel)
	a.checkRuntime()
	if err := a.faults.now[partRuntime]; err != nil {
		t.Errorf("before the agent has written its configuration: %v", err)
	}
	if err := a.writeConflist(); err != nil {
		t.Fatal(err)
	}
	a.kernel.lastSync = time.Now() // a recent sync, so only a fault that checkRuntime finds makes the agent unready
	for _, tc := range []struct{ name, text, says string }{
		{"10-flannel.conflist", flannel, "10-flannel.conflist (flannel, portmap)"},
		{"00-ptp.conf", `{"name": "p", "type": "ptp"}`, "00-ptp.conf (ptp)"},
		{
			"00-multus.conf", `{"type": "multus-shim", "clusterNetwork": "/host/etc/cni/net.d/10-flannel.conflist"}`,
			"00-multus.conf (multus-shim)",
		},
		{"10-flannel.conflist.bak", flannel, ""},
		{"87-podman-bridge.conflist", `{"name": "podman", "plugins": [{"type": "bridge"}]}`, ""},
		{"00-empty.conflist", "", ""},
		{"00-multus.conf", `{"name": "m", "type": "multus", "clusterNetwork": "weir"}`, ""},
	} {
		write(tc.name, tc.text)
		a.checkRuntime()
		switch err := a.faults.now[partRuntime]; {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: got %v, want an error with %q", tc.name, err, tc.says)
		}
		if a.publishStatus(); a.status.Load().ready != (tc.says == "") {
			t.Errorf("%s: the agent is ready: %v", tc.name, a.status.Load().ready)
		}
		if err := os.Remove(filepath.Join(filepath.Dir(a.Node.Conflist), tc.name)); err != nil {
			t.Fatal(err)
		}
		if a.checkRuntime(); a.faults.now[partRuntime] != nil {
			t.Errorf("%s is gone: %v", tc.name, a.faults.now[partRuntime])
		}
	}
}

// TestConflistStays: plugins that another program has appended stay in the file, even if weir's own part changes.
func TestConflistStays(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	if err := a.writeConflist(); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		data, err := os.ReadFile(a.Node.Conflist)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	appended := strings.Replace(read(), `"plugins": [`, `"plugins":[`, 1)
	end := strings.LastIndex(appended, "]")
	appended = appended[:end] + `, {"type": "istio-cni"}` + appended[end:]
	if err := os.WriteFile(a.Node.Conflist, []byte(appended), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.writeConflist(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(appended, read()); diff != "" {
		t.Errorf("the agent has written although weir's part is right: %s", diff)
	}
	a.overlay.plan.MTU--
	if err := a.writeConflist(); err != nil {
		t.Fatal(err)
	}
	if got := read(); got == appended || !strings.Contains(got, "istio-cni") {
		t.Errorf("with another MTU: %s", got)
	}
}
