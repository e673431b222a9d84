package attachment

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/test/nodetest"
)

// TestReapAfterAnIndexCameBack: if the pod of a chained attachment is gone, and a later pod's link has got the index
// of that pod's link, Reap ends the attachment. It leaves the later pod's link up, even if both pods have the same
// address.
func TestReapAfterAnIndexCameBack(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	nodetest.NewNS(t, "pod")
	// If a plugin makes the pair in the pod's namespace, and moves one end to the node's namespace, the kernel keeps
	// the end's index if that index is free on the node.
	nodetest.RunEach(t, "ip -n pod link add vpod index 77 type veth peer name eth0", "ip -n pod link set vpod netns 1",
		"ip link set vpod up", "ip -n pod address add 192.0.2.1/32 dev eth0")
	addr := netip.MustParseAddr("192.0.2.1")
	save := func(container, link string) {
		n.must((&endpoint.Endpoint{
			ContainerID: container, IfName: "eth0", Network: "weir", Enforcement: conf.Strict, Netns: "/run/netns/unseen",
			Chained: true, HostIf: link, HostIndex: 77,
			Addresses: []endpoint.Address{{Addr: addr, Subnet: netip.PrefixFrom(addr, 32)}},
		}).Save())
	}
	save("c2", "vpod")
	n.must(ipam.AssignExternal("c2:eth0", addr))
	for _, suffix := range []string{".json", ".ending"} {
		save("c1", "gone")
		n.must(os.Rename(record("c1", ".json"), record("c1", suffix)))
		if ended, err := NewNode().Reap(); err != nil || len(ended) != 1 || ended[0].ContainerID != "c1" {
			t.Errorf("c1%s: ended: %v, %v", suffix, ended, err)
		}
		if link, err := net.InterfaceByName("vpod"); err != nil || link.Flags&net.FlagUp == 0 {
			t.Errorf("c1%s: the other pod's link is down: %v", suffix, err)
		}
	}
}

// TestPreventBypass: findLink changes nothing, and preventBypass makes the bridge's packets pass the FORWARD hook. The
// error of each step names that step.
func TestPreventBypass(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	fd, err := openNetns(nodetest.NewNS(t, "pod"))
	n.must(err)
	defer func() { _ = fd.Close() }()
	nodetest.RunEach(t, "ip link add br0 type bridge", "ip link add vpod type veth peer name eth0 netns pod",
		"ip link set vpod master br0 up")
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	n.must(err)
	defer links.Close()
	m := &making{netns: fd, record: endpoint.Endpoint{IfName: "eth0", Chained: true, Enforcement: conf.Strict}}
	filtered := func(want bool) {
		t.Helper()
		if on, err := bridge.NetfilterEnabled("br0"); on != want || err != nil {
			t.Errorf("packets of br0 pass FORWARD: %v, %v", on, err)
		}
	}
	n.must(m.findLink(links))
	if m.record.HostIf != "vpod" || m.record.BridgeIf != "br0" {
		t.Errorf("found %s on %s", m.record.HostIf, m.record.BridgeIf)
	}
	filtered(false)
	n.must(m.preventBypass(links))
	filtered(true)
	readOnly := filepath.Join(t.TempDir(), "disable_ipv6")
	n.must(os.WriteFile(readOnly, []byte("0"), 0o400))
	for _, tc := range []struct{ breaks, step string }{
		{
			"mount --bind -o ro " + readOnly + " /proc/sys/net/ipv6/conf/vpod/disable_ipv6",
			"keep the pod's packets from bypassing policy",
		},
		{"ip -n pod link del eth0", "find the pod's link"},
	} {
		nodetest.RunEach(t, tc.breaks)
		var step *StepError
		if err := m.prepareChained(&Chained{}); !errors.As(err, &step) || step.Step != tc.step {
			t.Errorf("after %s: %v", tc.breaks, err)
		}
	}
}
