package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestForgedSendersAreDropped: if a pod sends a raw frame whose source MAC or source address isn't the pod's own,
// the frame doesn't reach the node.
func TestForgedSendersAreDropped(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	victim, pod := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	own, others := netip.MustParseAddr(pod.IP), netip.MustParseAddr(victim.IP)
	free, gateway := netip.MustParseAddr("10.88.0.77"), netip.MustParseAddr("10.88.0.1")
	mac, toNode := bridge.MAC, bridge.MAC(gateway)
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

	for _, tc := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"its own IPv4", ipv4(toNode, mac(own), own, gateway), true},
		{"its own ARP", arp(mac(own), mac(own), own, gateway), true},
		{"a free address", ipv4(toNode, mac(own), free, gateway), false},
		{"another pod's address", ipv4(toNode, mac(own), others, gateway), false},
		{"another pod's MAC", ipv4(toNode, mac(others), own, gateway), false},
		{"another pod's MAC and address", ipv4(toNode, mac(others), others, gateway), false},
		{"the gateway's address", ipv4(toNode, mac(own), gateway, others), false},
		{"the gateway's MAC and address", ipv4(mac(others), mac(gateway), gateway, others), false},
		{"no address", ipv4(toNode, mac(own), netip.IPv4Unspecified(), gateway), false},
		{"ARP for another's address", arp(mac(own), mac(own), others, gateway), false},
		{"ARP with another's MAC inside", arp(mac(own), mac(others), own, gateway), false},
		{"ARP for the gateway", arp(mac(own), mac(own), gateway, others), false},
		{"ARP probe", arp(mac(own), mac(own), netip.IPv4Unspecified(), gateway), false},
		{"IPv6", frame(broadcast, mac(own), unix.ETH_P_IPV6, bytes.Repeat([]byte{0x60}, 40)), false},
		{"another protocol", frame(broadcast, mac(own), 0x88b5, nil), false},
		{"IPv4 under a VLAN tag", tagged(ipv4(toNode, mac(own), others, gateway)), false},
		{
			"IPv6 of its MAC's", ipv6(toNode, mac(own), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2"), udp6()),
			false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := passes(t, pod.Netns, conf.Bridge, tc.frame, tc.pass)
			if got != tc.pass {
				t.Errorf("came out of the bridge: %v, want %v", got, tc.pass)
			}
		})
	}
	t.Run("pods don't meet at layer 2", func(t *testing.T) {
		// The bridge forwards no frame from one isolated port to another.
		conn := packetSocket(t, victim.Netns, "eth0")
		send(t, pod.Netns, ipv4(mac(others), mac(own), own, others))
		send(t, pod.Netns, frame(broadcast, mac(own), unix.ETH_P_ARP, arp(mac(own), mac(own), own, others)[14:]))
		if seen(t, conn, quiet) {
			t.Error("a frame went from port to port")
		}
	})
}

var marker = []byte("weir-test-marker")

func frame(dst, src net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst...), src...)
	f = binary.BigEndian.AppendUint16(f, ethertype)
	return append(append(f, payload...), marker...)
}

func ipv4(dstMAC, srcMAC net.HardwareAddr, src, dst netip.Addr) []byte {
	udp := binary.BigEndian.AppendUint16([]byte{0x30, 0x39, 0, 9}, uint16(8+len(marker)))
	udp = append(udp, 0, 0)
	h := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(udp)+len(marker)))
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return frame(dstMAC, srcMAC, unix.ETH_P_IP, append(h, udp...))
}

// arp returns an ARP packet in a frame. The parameter inside is the sender's MAC in the ARP header.
func arp(srcMAC, inside net.HardwareAddr, src, dst netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, inside...), src.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), dst.AsSlice()...)
	return frame(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, srcMAC, unix.ETH_P_ARP, b)
}

func tagged(f []byte) []byte {
	t := append([]byte{}, f[:12]...)
	t = append(t, 0x81, 0, 0, 5)
	return append(t, f[12:]...)
}

// quiet is how long a test waits for a frame before it concludes that none comes.
const quiet = 100 * time.Millisecond

// passes sends the frame, and reports whether the frame arrives at the node's link that the parameter out names. If
// must is true, passes waits for the frame for up to ten seconds, otherwise only for the time quiet.
func passes(t *testing.T, netns, out string, f []byte, must bool) bool {
	t.Helper()
	fd := packetSocket(t, nodetest.Self, out)
	send(t, netns, f)
	if must {
		return seen(t, fd, 10*time.Second)
	}
	return seen(t, fd, quiet)
}

func packetSocket(t *testing.T, netns, link string) (fd int) {
	t.Helper()
	nodetest.In(t, netns, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // ETH_P_ALL in network byte order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func send(t *testing.T, netns string, f []byte) {
	t.Helper()
	if _, err := unix.Write(packetSocket(t, netns, "eth0"), f); err != nil {
		t.Fatalf("send a frame: %v", err)
	}
}

// seen reports whether a frame that contains the text marker arrives at the socket fd. It gives up if no frame
// arrives for the time wait.
func seen(t *testing.T, fd int, wait time.Duration) bool {
	t.Helper()
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for end := time.Now().Add(10 * wait); time.Now().Before(end); {
		k, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(fmt.Errorf("receive: %w", err))
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING &&
			bytes.Contains(buf[:k], marker) {
			return true
		}
	}
	return false
}
