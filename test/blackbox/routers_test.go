package blackbox

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

func advertisement(dst, src net.HardwareAddr) []gopacket.SerializableLayer {
	prefix := append([]byte{64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0}, net.ParseIP("2001:db8:bad::")...)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRouterAdvertisement, 0)}
	return []gopacket.SerializableLayer{
		ethernet(dst, src, "::"), header("fe80::bad", "ff02::1", layers.IPProtocolICMPv6, icmp), icmp,
		&layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800, Options: layers.ICMPv6Options{
			{Type: layers.ICMPv6OptSourceAddress, Data: src}, {Type: layers.ICMPv6OptPrefixInfo, Data: prefix},
		}},
	}
}

func believesNoRouter(t *testing.T) {
	t.Helper()
	time.Sleep(silence)
	if got := nodetest.Run(t, "ip", "-6", "route", "show", "proto", "ra"); got != "" {
		t.Errorf("the node believes a router:\n%s", got)
	}
	if got := nodetest.Run(t, "ip", "-6", "addr", "show", "to", "2001:db8:bad::/48"); got != "" {
		t.Errorf("the node has an address of a router's prefix:\n%s", got)
	}
}

// TestRouterAdvertisements: the node accepts no router advertisement from a pod.
func TestRouterAdvertisements(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, _, _ := hostileNode(t, nil)
	mac := macOf(t, e.Netns, "eth0")
	for last := range byte(16) {
		nodetest.SendFrames(t, e.Netns, "eth0", nodetest.Frame(t, advertisement(linkLocal(last), mac)...))
	}
	nodetest.SendFrames(t, e.Netns, "eth0",
		nodetest.Frame(t, advertisement(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac)...))
	believesNoRouter(t)
}

// TestRouterAdvertisementsBehindBridge: no pod on another plugin's bridge becomes the router of other pods. A host that
// weir doesn't know may become their router.
func TestRouterAdvertisementsBehindBridge(t *testing.T) {
	if !isolatedBehind(t, "bridge") {
		return
	}
	n := attachedBy(t, "bridge", isolated)
	server, other, stranger := n.AddPod("shop", "server"), n.AddPod("shop", "other"), newStranger(t)
	linkLocalOf(n, other.Netns, "eth0")
	advertise := func(netns string) string {
		t.Helper()
		all := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
		nodetest.SendFrames(t, netns, "eth0", nodetest.Frame(t, advertisement(all, macOf(t, netns, "eth0"))...))
		time.Sleep(silence)
		return nodetest.Run(t, "nsenter", "--net="+other.Netns, "ip", "-6", "route", "show", "proto", "ra")
	}
	for range 3 {
		if got := advertise(server.Netns); got != "" {
			t.Fatalf("a pod is another pod's router:\n%s", got)
		}
	}
	believesNoRouter(t)
	n.Eventually("the drop shows", func() error { return shows(n, "link-local", "icmpv6 type 134") })
	n.Eventually("the unknown router is the pod's router", func() error {
		if advertise(stranger) == "" {
			return errors.New("it isn't")
		}
		return nil
	})
}

// TestRouterAdvertisementsOutOfTheTunnel: the node accepts no router advertisement that comes out of the tunnel.
func TestRouterAdvertisementsOutOfTheTunnel(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, _, _, _, there := tunnelNode(t, "192.0.2.2", "192.0.2.1")
	inner := nodetest.Frame(t, advertisement(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, there)...)
	nodetest.SendFrames(t, "/run/netns/outside", "eth0", nodetest.Frame(t, layersOf(
		ethernet(macOf(t, nodetest.Self, "eth0"), macOf(t, "/run/netns/outside", "eth0"), "192.0.2.2"),
		tunnelPacket(t, "192.0.2.1", "192.0.2.2", inner)...)...))
	believesNoRouter(t)
}

// unaskedAddresses returns IPv6 addresses of weir's links that weir can't have set: any address on a pod's port, and
// addresses other than unique local ones (fc00::/7) on other links.
func unaskedAddresses(t *testing.T) (all []string) {
	t.Helper()
	for line := range strings.Lines(nodetest.Run(t, "ip", "-6", "-o", "addr", "show")) {
		f := strings.Fields(line)
		if !strings.HasPrefix(f[1], "weir") {
			continue
		}
		p, err := netip.ParsePrefix(f[3])
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(f[1], "weirp") || p.Addr().IsLinkLocalUnicast() || !p.Addr().IsPrivate() {
			all = append(all, f[1]+" "+f[3])
		}
	}
	return all
}

// TestNoAddressThatNobodyAskedFor: if no pod has IPv6, the kernel gives weir's links no IPv6 addresses by itself.
func TestNoAddressThatNobodyAskedFor(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	tunnelNode(t, "192.0.2.2", "192.0.2.1")
	if got := unaskedAddresses(t); len(got) > 0 {
		t.Errorf("the node has %v", got)
	}
}

// TestNoAddressThatNobodyAskedForWithIPv6Pods: if pods have IPv6, weir0 has only unique local addresses.
func TestNoAddressThatNobodyAskedForWithIPv6Pods(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	hostileNode(t, dualStack)
	if got := unaskedAddresses(t); len(got) > 0 {
		t.Errorf("the node has %v", got)
	}
}
