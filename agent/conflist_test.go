package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// TestConflist: if a write fails, the runtime still finds either the whole configuration or none.
func TestConflist(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t)
	driver, err := iptables.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	path := filepath.Join(t.TempDir(), "10-weir.conflist")
	a := newAgent(Options{
		Log:  slog.New(slog.DiscardHandler),
		Node: NodeOptions{Name: "self", Overlay: overlay.Options{Encapsulation: overlay.Always}, Conflist: path},
	}, driver, links)
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
	a.planOverlay()
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
