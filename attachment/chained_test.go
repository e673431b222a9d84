package attachment

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/test/nodetest"
)

// TestReapAfterAnIndexCameBack: the pod of a chained attachment is gone, and another pod's link has got the index of
// the pod's link. Reap ends the attachment and leaves the other link up, even if the other pod has the same address.
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
