package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// TestPodsForgeNoTunnelPackets: if n1 has a gate, a pod of n1 can't send a forged tunnel packet to n2, not even
// to an address that n1 doesn't know.
func TestPodsForgeNoTunnelPackets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	const internal, second = "172.20.2.10", "198.51.100.10"
	nodetest.NewNS(t, "pod")
	for _, c := range []string{
		"ip link add eth1 netns n2 type veth peer name n2b netns router",
		"ip -n router addr add 198.51.100.1/24 dev n2b", "ip -n router link set n2b up",
		"ip -n n2 addr add " + second + "/24 dev eth1", "ip -n n2 link set eth1 up",
		"ip link add eth0 netns pod type veth peer name pod netns n1",
		"ip -n n1 addr add 100.96.1.1/24 dev pod", "ip -n n1 link set pod up",
		"ip -n pod addr add 100.96.1.7/24 dev eth0", "ip -n pod link set eth0 up",
		"ip -n pod route add default via 100.96.1.1",
	} {
		f := strings.Fields(c)
		nodetest.Run(t, f[0], f[1:]...)
	}
	nodetest.In(t, "/run/netns/n1",
		func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600) })
	nodes := []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", internal, "100.96.2.0/24"),
		node("n3", "172.20.3.10", "100.96.3.0/24"),
	}
	for name, o := range overlays {
		if err := applied(o, planned(name, Always, nodes, o)); err != nil {
			t.Fatal(err)
		}
	}

	on := func(name string, f func(*iptables.Driver) error) {
		t.Helper()
		nodetest.In(t, "/run/netns/"+name, func() error {
			d, err := iptables.New(t.Context())
			if err != nil {
				return err
			}
			defer d.Close()
			return f(d)
		})
	}
	enforce := func(name string, nodes ...policy.Node) {
		t.Helper()
		s := policy.State{Objects: policy.Objects{
			Nodes:      nodes,
			Namespaces: []policy.Namespace{{Name: "lab"}},
			Pods:       []policy.Pod{{Namespace: "lab", Name: "pod"}},
		}}
		if name == "n1" {
			s.Endpoints = []policy.Endpoint{{
				ID: "pod:eth0", Enforcement: conf.Strict, Pod: policy.PodRef{Namespace: "lab", Name: "pod"},
				Addresses: []policy.Address{{
					Addr:   netip.MustParseAddr("100.96.1.7"),
					Subnet: netip.MustParsePrefix("100.96.1.0/24"),
				}},
			}}
		}
		on(name, func(d *iptables.Driver) error {
			_, _, err := NewGate(planned(name, Always, nodes, overlays[name]), []string{"pod"}).Apply()
			if err == nil {
				_, err = d.Apply(t.Context(), policy.Compile(s), netfilter.All)
			}
			return err
		})
	}
	flush := func(name string) {
		t.Helper()
		nodetest.Run(t, "ip", "netns", "exec", name, "iptables", "-t", "mangle", "-F")
		nodetest.Run(t, "ip", "netns", "exec", name, "nft", "delete", "table", "inet", conf.TunnelTable)
	}
	arrives := func(to string, want bool) {
		t.Helper()
		if err := tried(want, func() error { return forge(t, to) }); (err == nil) != want {
			t.Errorf("a forged packet sent to %s: %v, want it to arrive: %v", to, err, want)
		}
	}

	// Without a gate, the forged packets arrive if n1 masquerades them.
	enforce("n1", nodes...)
	flush("n1")
	arrives(internal, true)
	arrives(second, true)
	// With the gate on n2 alone, n2's second address is protected.
	enforce("n2", nodes...)
	arrives(second, false)
	// With the gate on n1 alone, all addresses are protected, even those of a node that n1 doesn't know.
	flush("n2")
	for _, known := range [][]policy.Node{nodes, {nodes[0], nodes[2]}} {
		enforce("n1", known...)
		arrives(internal, false)
		arrives(second, false)
	}
	// The gate protects even an address that is in a podCIDR of another Node.
	broken := nodes[2]
	broken.PodCIDRs = append(broken.PodCIDRs, netip.MustParsePrefix("172.20.0.0/16"))
	enforce("n1", nodes[0], nodes[1], broken)
	nodetest.Run(t, "ip", "netns", "exec", "n1", "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j",
		"MASQUERADE")
	arrives(internal, false)
	// Real tunnel packets still arrive.
	enforce("n1", nodes...)
	enforce("n2", nodes...)
	if err := tried(true, func() error { return ask(t, "n3", "n2", 100) }); err != nil {
		t.Errorf("n3 reaches n2: %v", err)
	}
}

// forge sends a tunnel packet from n1's pod to the address. The packet inside has an address of n3's pods as its
// source. forge returns nil if the packet inside arrives on n2.
func forge(t *testing.T, to string) (result error) {
	t.Helper()
	packet := vxlan(netip.MustParseAddr("172.20.3.10"), netip.MustParseAddr("172.20.2.10"),
		netip.MustParseAddrPort("100.96.3.99:9"), netip.MustParseAddrPort("100.96.2.5:9"))
	number := packet[len(packet)-8:] // a late packet of an earlier call has another number
	binary.BigEndian.PutUint64(number, rand.Uint64())
	nodetest.In(t, "/run/netns/n2", func() error {
		server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.96.2.5:9")))
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		nodetest.In(t, "/run/netns/pod", func() error {
			conn, err := net.Dial("udp4", net.JoinHostPort(to, strconv.Itoa(conf.OverlayPort)))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = conn.Write(packet)
			return err
		})
		if err := server.SetReadDeadline(time.Now().Add(250 * time.Millisecond)); err != nil {
			return err
		}
		came := make([]byte, 100)
		k, from, err := server.ReadFromUDPAddrPort(came)
		for err == nil && !bytes.Equal(came[:k], number) {
			k, from, err = server.ReadFromUDPAddrPort(came)
		}
		if err == nil && from.Addr().String() != "100.96.3.99" {
			err = errors.New("it came from " + from.String())
		}
		result = err
		return nil
	})
	return result
}

// vxlan returns the payload of a tunnel packet (RFC 7348, section 5): a VXLAN header, and a frame with a UDP packet.
// The UDP packet has no checksum.
func vxlan(from, to netip.Addr, src, dst netip.AddrPort) []byte {
	udp := make([]byte, 8, 16)
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	udp = append(udp, "forged!!"...)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
	copy(ip[12:], src.Addr().AsSlice())
	copy(ip[16:], dst.Addr().AsSlice())
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	b := []byte{8, 0, 0, 0, 0, 0, conf.OverlayVNI, 0}
	b = append(append(append(b, MAC(to)...), MAC(from)...), 8, 0)
	return append(append(b, ip...), udp...)
}
