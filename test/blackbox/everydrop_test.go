package blackbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

func dropsFor(n *nodetest.Node, reason string) (all []shownDrop) {
	n.Helper()
	// If no drop matches, a note is printed on stderr, which Output doesn't return.
	text, err := exec.Command(filepath.Join(n.Bin, "weirctl"), "drops", "--reason", reason, "-o", "json").Output()
	if err != nil {
		n.Fatal(err)
	}
	for values := json.NewDecoder(bytes.NewReader(text)); values.More(); {
		var d shownDrop
		if err := values.Decode(&d); err != nil {
			n.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// TestEveryDropShows: whatever the reason for which weir drops a packet, "weirctl drops" shows the reason and the
// sender.
func TestEveryDropShows(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	const own, other, times = "192.0.2.2", "192.0.2.1", 3
	n, e, b, here, there := tunnelNode(t, own, other)
	n.Manifest("c.yaml", pods("quiet", "c"))
	var c *nodetest.Pod
	n.Eventually("c starts", func() (err error) { // on a busy machine, the agent may read the manifest after the first try
		c, err = n.TryAddPod("quiet", "c")
		return err
	})
	n.Eventually("the agent reads drops", func() error {
		_, err := n.Ctl("drops")
		return err
	})
	mac, gateway := macOf(t, e.Netns, "eth0"), macOf(t, nodetest.Self, "weir0")
	uplink, outside := macOf(t, nodetest.Self, "eth0"), macOf(t, "/run/netns/outside", "eth0")
	const nobody = "10.88.0.200"
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 80, ACK: true, Window: 100}
	midstream := nodetest.Frame(t, ethernet(gateway, macOf(t, b.Netns, "eth0"), c.IP),
		header(b.IP, c.IP, layers.IPProtocolTCP, tcp), tcp)
	advertise := func(kind uint8) []byte {
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
		return nodetest.Frame(t, ethernet(gateway, mac, "ff02::1"),
			header("fe80::bad", "ff02::1", layers.IPProtocolICMPv6, icmp), icmp, gopacket.Payload(make([]byte, 12)))
	}
	stranger := nodetest.Frame(t, layersOf(ethernet(uplink, outside, own), tunnelPacket(t, "192.0.2.77", own,
		udpFrame(t, there, here, "10.99.0.7", b.IP, 9999, []byte("x")))...)...)
	for _, tc := range []struct {
		reason, netns string
		frame         []byte
		want          string // a part of the output
	}{
		{"guard", e.Netns, udpFrame(t, mac, gateway, "10.88.0.77", b.IP, 53, nil), "hostile/e (10.88.0.77:40000)"},
		{"guard", e.Netns, udpFrame(t, mac, gateway, c.IP, b.IP, 54, nil), "the address is that of quiet/c"},
		{"guard", e.Netns, udpFrame(t, outside, gateway, e.IP, b.IP, 55, nil), "so the MAC or the link is not"},
		{
			"guard", e.Netns, nodetest.Frame(t, &layers.Ethernet{DstMAC: gateway, SrcMAC: mac, EthernetType: 0x88b5},
				gopacket.Payload("x")), "EtherType 0x88b5",
		},
		{"reserved-mac", e.Netns, udpFrame(t, mac, linkLocal(14), e.IP, own, 53, nil), "reserved for bridges"},
		{"loopback", e.Netns, udpFrame(t, mac, gateway, e.IP, "127.0.0.1", 53, nil), "hostile/e ("},
		{"discovery", e.Netns, advertise(layers.ICMPv6TypeRouterAdvertisement), "icmpv6 type 134 code 0"},
		{"discovery", e.Netns, advertise(layers.ICMPv6TypeRedirect), "icmpv6 type 137 code 0"},
		{"policy", e.Netns, udpFrame(t, mac, gateway, e.IP, b.IP, 53, nil), "isolated by hostile/deny-all"},
		{"midstream", b.Netns, midstream, "egress   quiet/b ("},
		{"no-pod", b.Netns, udpFrame(t, macOf(t, b.Netns, "eth0"), gateway, b.IP, nobody, 53, nil), nobody + ":53"},
		{"tunnel", "/run/netns/outside", stranger, "inside is a packet from 10.99.0.7 to " + b.IP},
		{
			"wrong-link", "/run/netns/outside", udpFrame(t, outside, uplink, "10.99.0.7", b.IP, 53, nil),
			"ingress  10.99.0.7:40000 -> quiet/b",
		},
	} {
		before := packets(dropsFor(n, tc.reason))
		for range times {
			nodetest.SendFrames(t, tc.netns, "eth0", tc.frame)
		}
		n.Eventually(tc.reason+" shows", func() error {
			text, err := n.Ctl("drops", "--reason", tc.reason)
			if got := packets(dropsFor(n, tc.reason)) - before; err != nil || got != times || !strings.Contains(text, tc.want) {
				return fmt.Errorf("%w: %d of %d packets, want %q in\n%s", err, got, times, tc.want, text)
			}
			t.Log(text)
			return nil
		})
	}
	t.Run("icmp-error", func(t *testing.T) {
		f := newForgery(t, e)
		f.send(b.IP, unreachable, flow(b.IP+":4000", c.IP+":53"), "forged")
		n.Eventually("the error shows", func() error { return shows(n, "icmp-error", "egress   hostile/e (") })
	})
	t.Run("fragments", func(t *testing.T) {
		var frames [][]byte
		for id := range 15_000 {
			frames = append(frames, firstFragment(t, gateway, mac, e.IP, b.IP, id, 8))
		}
		n.Eventually("fragments show", func() error {
			nodetest.SendFrames(t, e.Netns, "eth0", frames...)
			return shows(n, "fragments", "egress   hostile/e (")
		})
	})
	t.Run("past-bridge", func(t *testing.T) {
		n.Eventually("frames past the bridge show", func() error {
			nodetest.RunEach(t, "ip link set dev "+portOf(t, e)+" type bridge_slave group_fwd_mask 0")
			nodetest.SendFrames(t, e.Netns, "eth0", udpFrame(t, mac, linkLocal(14), e.IP, own, 53, nil))
			return shows(n, "past-bridge", "egress   hostile/e (")
		})
	})
	t.Run("cut", func(t *testing.T) {
		n.Serve(b.Netns, "tcp", ":80")
		conn := nodetest.Connect(t, c.Netns, "tcp", net.JoinHostPort(b.IP, "80"))
		n.Manifest("deny.yaml", denyAllIngress)
		n.Eventually("packets of the cut connection show", func() error {
			_, _ = conn.Write([]byte("x"))
			return shows(n, "cut", "egress   quiet/c (")
		})
	})
}

func packets(all []shownDrop) (sum uint64) {
	for _, d := range all {
		sum += d.Count
	}
	return sum
}

func shows(n *nodetest.Node, reason, want string) error {
	text, err := n.Ctl("drops", "--reason", reason)
	if err != nil || !strings.Contains(text, want) {
		return fmt.Errorf("%w: want %q in\n%s", err, want, text)
	}
	n.Log(text)
	return nil
}
