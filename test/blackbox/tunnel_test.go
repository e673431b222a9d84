package blackbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

func lab(t *testing.T, size int, flags ...string) (*nodetest.Cluster, []*nodetest.Pod) {
	t.Helper()
	c := nodetest.NewCluster(t, size)
	c.Manifest("nodes.yaml", honestNodes(size, 0))
	c.Manifest("pods.yaml", labPods(size))
	var pods []*nodetest.Pod
	for i, n := range c.Nodes {
		n.StartAgent(flags...)
		awaitConflist(c, n)
		pods = append(pods, n.AddPod("lab", fmt.Sprint("p", i+1)))
	}
	return c, pods
}

func awaitConflist(c *nodetest.Cluster, n *nodetest.ClusterNode) {
	c.Helper()
	c.Eventually("the configuration of "+n.Name, func() error { _, err := os.Stat(n.Conflist); return err })
}

func rpFilter(t *testing.T, netns string, value int) {
	t.Helper()
	nodetest.In(t, netns, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, name := range []string{"all", "default"} {
			links = append(links, net.Interface{Name: name})
		}
		for _, l := range links {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+l.Name+"/rp_filter", []byte(fmt.Sprint(value)),
				0o600); err != nil {
				return err
			}
		}
		return nil
	})
}

// arrives calls the function send, and reports whether a datagram reaches the address. The function control sends a
// datagram that begins with "control". The wait ends when this datagram arrives. If nothing arrives for 300 ms, arrives
// calls control again, because the machine may be busy. If control is nil, the wait ends after 300 ms of silence.
func arrives(t *testing.T, netns, address string, send, control func()) bool {
	t.Helper()
	var conn *net.UDPConn
	nodetest.In(t, netns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	})
	defer func() { _ = conn.Close() }()
	send()
	buf, came := make([]byte, 2000), false
	var err error
	for range 40 {
		if control != nil {
			control()
		}
		if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var k int
		switch k, err = conn.Read(buf); {
		case err != nil && control != nil:
		case err != nil, strings.HasPrefix(string(buf[:k]), "control"):
			return came
		default:
			came = true
		}
	}
	if err != nil {
		t.Fatalf("what must arrive at %s doesn't: %v", address, err)
	}
	return came
}

func tunnelMAC(node string) net.HardwareAddr {
	b := netip.MustParseAddr(node).As4()
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}

func inTunnel(t *testing.T, vni uint32, inner []byte) []byte {
	t.Helper()
	return nodetest.Frame(t, &layers.VXLAN{ValidIDFlag: true, VNI: vni}, gopacket.Payload(inner))
}

// wire sends a datagram on the router's link to the node. The sender's address (from) may be forged.
func wire(t *testing.T, node int, from, to string, port int, payload []byte) {
	t.Helper()
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, byte(node), last} }
	nodetest.SendFrames(t, nodetest.RouterNS, fmt.Sprint("r", node), udpFrame(t, mac(1), mac(2), from, to, port, payload))
}

const (
	node1, node2, node3 = "172.20.1.10", "172.20.2.10", "172.20.3.10"
	vni, vxlanPort      = 88, 4789
)

func forged(t *testing.T, from, to, payload string) []byte {
	t.Helper()
	return udpFrame(t, tunnelMAC(node1), tunnelMAC(node2), from, to, 9, []byte(payload))
}

func honest(t *testing.T, to string) func() {
	from := "100.96.1.77"
	if strings.Contains(to, ":") {
		from = "fd00:96:1::77"
	}
	return func() { wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, forged(t, from, to, "control"))) }
}

// TestForgedRemotePods: if a host between the nodes sends packets without a tunnel, with source addresses from the
// pods' networks, the packets don't arrive.
func TestForgedRemotePods(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 3)
	for _, filter := range []int{0, 2} {
		rpFilter(t, c.Nodes[1].Netns, filter)
		for _, to := range []string{pods[1].IP, pods[1].IP6} {
			for _, from := range map[bool][]string{
				false: {pods[0].IP, pods[2].IP, "100.96.1.0", "100.96.2.77"}, true: {pods[0].IP6, pods[2].IP6, "fd00:96:2::77"},
			}[strings.Contains(to, ":")] {
				if arrives(t, pods[1].Netns, netip.AddrPortFrom(netip.MustParseAddr(to), 9).String(),
					func() { wire(t, 2, from, to, 9, []byte("forged")) }, honest(t, to)) {
					t.Errorf("rp_filter %d: a host on the wire is taken for %s by the pod %s", filter, from, to)
				}
			}
		}
		for _, from := range []string{pods[0].IP, "100.96.2.77"} {
			if arrives(t, c.Nodes[1].Netns, node2+":9", func() { wire(t, 2, from, node2, 9, []byte("forged")) },
				func() { wire(t, 2, node1, node2, 9, []byte("control")) }) {
				t.Errorf("rp_filter %d: a host on the wire is taken for the pod %s by the node", filter, from)
			}
		}
	}
}

// TestForgedInsideTunnels: a tunnel packet is dropped if the source of the packet inside isn't in the sending node's
// podCIDRs. Tunnel packets from hosts that aren't nodes are also dropped.
func TestForgedInsideTunnels(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 3)
	rpFilter(t, c.Nodes[1].Netns, 0)
	for _, to := range []string{pods[1].IP, pods[1].IP6} {
		at := netip.AddrPortFrom(netip.MustParseAddr(to), 9).String()
		for _, from := range map[bool][]string{
			false: {pods[2].IP, "100.96.3.0", "100.96.2.77", "100.96.2.0", "192.0.2.1", node1, node3},
			true:  {pods[2].IP6, "fd00:96:2::77", "2001:db8:9::1", "2001:db8:1::10"},
		}[strings.Contains(to, ":")] {
			if arrives(t, pods[1].Netns, at,
				func() { wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, forged(t, from, to, "forged"))) }, honest(t, to)) {
				t.Errorf("the tunnel of n1 brings packets of %s to %s", from, to)
			}
		}
		// The senders of these tunnel packets aren't other nodes. The same packets would pass if n1 sent them.
		if arrives(t, pods[1].Netns, at, func() {
			inner := map[bool]string{false: "100.96.1.77", true: "fd00:96:1::77"}[strings.Contains(to, ":")]
			for _, from := range []string{"192.0.2.1", "172.20.1.11", node2} {
				wire(t, 2, from, node2, vxlanPort, inTunnel(t, vni, forged(t, inner, to, "forged")))
			}
		}, honest(t, to)) {
			t.Errorf("a host that is no node has a tunnel to %s", to)
		}
	}
}

// TestNothingElseOutOfTunnels: the node ignores router advertisements and ARP requests that come out of a tunnel.
func TestNothingElseOutOfTunnels(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 2)
	c.Manifest("nodes.yaml", nodeManifest("n1", 1, node1, "100.96.1.0/24")+nodeManifest("n2", 2, node2, "100.96.2.0/24"))
	n := c.Nodes[1]
	n.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; ip -6 route del default")
	n.StartAgent()
	awaitConflist(c, n)
	// The link is made to accept router advertisements, so that the test would notice an advertisement that arrives.
	n.Run("sh", "-c",
		"ip link set weir-vxlan addrgenmode eui64; ip link set weir-vxlan down; ip link set weir-vxlan up; "+
			"echo 2 > /proc/sys/net/ipv6/conf/weir-vxlan/accept_ra")
	n.Run("ip", "addr", "replace", "fe80::2/64", "dev", "weir-vxlan", "nodad")
	advertised := nodetest.Frame(t, advertisement(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, tunnelMAC(node1))...)
	for range 3 {
		wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, advertised))
		time.Sleep(100 * time.Millisecond)
	}
	if out := n.Run("ip", "-6", "route"); strings.Contains(out, "default") {
		t.Errorf("the node has a router behind the tunnel:\n%s", out)
	}
	// The node would answer this ARP request for its own address, if the request came out of the tunnel.
	heard := nodetest.Sniff(t, n.Netns, "weir-vxlan")
	arp := &layers.ARP{
		AddrType:          layers.LinkTypeEthernet,
		Protocol:          layers.EthernetTypeIPv4,
		HwAddressSize:     6,
		ProtAddressSize:   4,
		Operation:         layers.ARPRequest,
		SourceHwAddress:   tunnelMAC(node1),
		SourceProtAddress: net.IPv4(100, 96, 1, 77).To4(),
		DstHwAddress:      make([]byte, 6),
		DstProtAddress:    net.IPv4(100, 96, 2, 0).To4(),
	}
	wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, nodetest.Frame(t, &layers.Ethernet{
		SrcMAC:       tunnelMAC(node1),
		DstMAC:       net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		EthernetType: layers.EthernetTypeARP,
	}, arp)))
	for _, f := range heard.Frames(false, 200*time.Millisecond) {
		t.Errorf("a frame that is no IP came out of the tunnel: %x", f)
	}
}

// TestServiceBeforeTunnels: a packet that a DNAT rule of a node leads to the tunnel port isn't accepted as a tunnel
// packet.
func TestServiceBeforeTunnels(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 3)
	for _, n := range c.Nodes {
		rpFilter(t, n.Netns, 0)
	}
	n1, n2 := c.Nodes[0], c.Nodes[1]
	// kube-proxy makes such rules for a Service with an EndpointSlice that names n2.
	n1.Run("iptables", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "30000", "-j", "DNAT", "--to-destination",
		node2+":4789")
	n1.Run("iptables", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "-d", node2, "-o", "eth0", "-j", "MASQUERADE")
	n2.Run("iptables", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "30000", "-j", "DNAT", "--to-destination",
		node2+":4789")
	to := pods[1].IP
	payload := func(from string) []byte { return inTunnel(t, vni, forged(t, from, to, "forged")) }
	nodetest.NewNS(t, "world")
	nodetest.RunEach(t,
		"ip link add eth0 netns world type veth peer name w netns router", "ip -n router addr add 198.51.100.1/24 dev w",
		"ip -n router link set w up",
		"ip -n world addr add 198.51.100.9/24 dev eth0", "ip -n world link set eth0 up",
		"ip -n world route add default via 198.51.100.1",
	)
	for _, tc := range []struct{ who, netns, service, inside string }{
		{"a host beyond the nodes, by another node's Service", "/run/netns/world", node1 + ":30000", "100.96.1.77"},
		{"a pod, by another node's Service", pods[2].Netns, node1 + ":30000", "100.96.1.77"},
		{"a pod, by that node's Service", pods[2].Netns, node2 + ":30000", "100.96.3.77"},
		{"a pod, by its own node's Service", pods[0].Netns, node1 + ":30000", "100.96.1.77"},
		{"a pod by itself", pods[2].Netns, node2 + ":4789", "100.96.3.77"},
	} {
		if arrives(t, pods[1].Netns, to+":9", func() { sendUDP(t, tc.netns, tc.service, payload(tc.inside)) },
			honest(t, to)) {
			t.Errorf("%s sends into the tunnel as %s", tc.who, tc.inside)
		}
	}
}

func sendUDP(t *testing.T, netns, to string, payload []byte) {
	t.Helper()
	conn, err := nodetest.Dial(t, netns, "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(payload); err != nil {
		t.Logf("send to %s: %v", to, err)
	}
}

// TestTunnelsAreNotTranslated: a DNAT rule for the node's tunnel port doesn't change tunnel packets.
func TestTunnelsAreNotTranslated(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 2)
	n2 := c.Nodes[1]
	n2.Run("iptables", "-t", "nat", "-I", "PREROUTING", "-p", "udp", "-d", node2, "--dport", "4789", "-j", "DNAT",
		"--to-destination", pods[1].IP+":9")
	to := pods[1].IP
	if arrives(t, pods[1].Netns, to+":9", func() {
		wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, forged(t, "100.96.1.77", "100.96.2.200", "forged")))
		wire(t, 2, "192.0.2.1", node2, vxlanPort, []byte("no tunnel packet"))
	}, honest(t, to)) {
		t.Error("a pod gets packets that were sent to the tunnels' port of its node")
	}
	c.Serve(pods[1].Netns, "tcp4", to+":80")
	c.Eventually("p1 reaches p2", func() error { _, err := nodetest.Get(t, pods[0].Netns, to+":80"); return err })
	for _, n := range c.Nodes {
		if out := n.Run("sh", "-c", "conntrack -L -p udp 2>/dev/null | grep dport=4789 || true"); out != "" {
			t.Errorf("tunnels are tracked on %s:\n%s", n.Name, out)
		}
	}
}

// TestTunnelsComeByTheUnderlay: if a pod behind ptp sends a tunnel packet with a node's address as its source, the
// packet inside is dropped.
func TestTunnelsComeByTheUnderlay(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "main/bridge", "ipam/host-local") {
		return
	}
	c := nodetest.NewCluster(t, 2)
	c.Manifest("nodes.yaml", honestNodes(2, 0))
	c.Manifest("pods.yaml",
		labPods(2)+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: lab}\nspec: {nodeName: n2}\n")
	n := c.Nodes[1]
	n.StartAgent()
	awaitConflist(c, n)
	victim := n.AddPod("lab", "p2")
	n.Conflist = filepath.Join(t.TempDir(), "10-weir.conflist")
	if err := os.WriteFile(n.Conflist, []byte(`{"cniVersion": "1.0.0", "name": "weir", "plugins": [
		{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]],
			"routes": [{"dst": "0.0.0.0/0"}]}}, {"type": "weir"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other := n.AddPod("lab", "other")
	rpFilter(t, n.Netns, 0)
	link := func(netns string) *net.Interface {
		var l *net.Interface
		nodetest.In(t, netns, func() (err error) { l, err = net.InterfaceByName("eth0"); return err })
		return l
	}
	gateway := neighbour(t, "lab.other")
	if arrives(t, victim.Netns, victim.IP+":9", func() {
		nodetest.SendFrames(t, other.Netns, "eth0",
			udpFrame(t, link(other.Netns).HardwareAddr, gateway, node1, node2, vxlanPort,
				inTunnel(t, vni, forged(t, "100.96.1.77", victim.IP, "forged"))))
	}, honest(t, victim.IP)) {
		t.Error("a pod's packet is taken for a tunnel packet of a node")
	}
}

// TestDirectPeersDontComeOutOfTunnels: in the mode crossSubnet, packets from a node in the same subnet are dropped if
// they come out of a tunnel. Packets from a node in another subnet are dropped if they come without a tunnel.
func TestDirectPeersDontComeOutOfTunnels(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 3)
	shareSubnet(c)
	c.Manifest("nodes.yaml", honestNodes(3, 2))
	c.Manifest("pods.yaml", labPods(3))
	n := c.Nodes[1]
	n.StartAgent("--encapsulation", "crossSubnet")
	awaitConflist(c, n)
	p := n.AddPod("lab", "p2")
	rpFilter(t, n.Netns, 0)
	from3 := func(payload string) {
		inner := udpFrame(t, tunnelMAC(node3), tunnelMAC("172.21.0.2"), "100.96.3.77", p.IP, 9, []byte(payload))
		wire(t, 2, node3, "172.21.0.2", vxlanPort, inTunnel(t, vni, inner))
	}
	control := func() { from3("control") }
	if arrives(t, p.Netns, p.IP+":9", func() {
		inner := udpFrame(t, tunnelMAC("172.21.0.1"), tunnelMAC("172.21.0.2"), "100.96.1.77", p.IP, 9, []byte("forged"))
		wire(t, 2, "172.21.0.1", "172.21.0.2", vxlanPort, inTunnel(t, vni, inner))
	}, control) {
		t.Error("packets of a node's in the same subnet come out of a tunnel")
	}
	if arrives(t, p.Netns, p.IP+":9", func() { wire(t, 2, "100.96.3.77", p.IP, 9, []byte("forged")) }, control) {
		t.Error("packets of a node's in another subnet come without a tunnel")
	}
}
