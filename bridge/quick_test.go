package bridge

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestQuickEntries: the set links4 has an entry for each IPv4 sender whose link exists, as long as the sender is
// allowed. An allowed sender can send even if its entry in links4 is missing.
func TestQuickEntries(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	quick := func(want string) {
		t.Helper()
		list := nodetest.Run(t, "nft", "list", "set", "bridge", "weir", quickSet)
		if _, list, _ = strings.Cut(list, "elements"); strings.Contains(list, "10.88.0.") != (want != "") ||
			!strings.Contains(list, want) {
			t.Errorf("the set has %q, want %q", list, want)
		}
	}
	pings := func() { nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.1") }
	repair := func(want ...Sender) {
		t.Helper()
		if missing, _, err := RepairGuard(func() ([]Sender, error) { return want, nil }); len(missing) > 0 || err != nil {
			t.Errorf("repaired %v, %v", missing, err)
		}
	}
	p := n.pod("a", "10.88.0.2 fd00:10:88::2").Sender()
	for range 2 {
		if err := AllowSender(p); err != nil {
			t.Fatal(err)
		}
		quick(`"` + p.HostIf + `" . ` + p.MAC.String() + " . 10.88.0.2")
	}
	pings()
	nodetest.Run(t, "nft", "flush", "set", "bridge", "weir", quickSet)
	pings()
	repair(p)
	quick(p.HostIf)
	pings()
	repair()
	quick("")
	if out, err := runIn("a", "ping", "-c1", "-W1", "10.88.0.1"); err == nil {
		t.Fatalf("a forbidden port got through:\n%s", out)
	}
	for name, forbid := range map[string]func() error{
		"alone": func() error { return ForbidSender(p) },
		"together": func() error {
			later, err := ForbidPorts([]string{p.HostIf})
			later()
			return err
		},
		"alone, without its link": func() error { return ForbidSender(p) },
		"together, without its link": func() error {
			later, err := ForbidPorts([]string{p.HostIf})
			later()
			return err
		},
	} {
		if err := AllowSender(p); err != nil {
			t.Fatal(err)
		}
		quick(p.HostIf)
		if strings.HasSuffix(name, "link") {
			if err := RemovePort(p.HostIf, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := forbid(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		quick("")
		if strings.HasSuffix(name, "link") {
			nodetest.Run(t, "ip", "link", "add", p.HostIf, "type", "veth", "peer", "name", "again")
		}
	}
}
