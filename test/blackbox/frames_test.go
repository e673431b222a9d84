package blackbox

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

// silence is how long a test waits for a packet before it concludes that none comes.
const silence = 300 * time.Millisecond

const denyAll = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: hostile}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

// hostileNode returns a node without rp_filter, and three of its pods. A policy denies all connections from and to the
// pod hostile.
func hostileNode(t *testing.T, conf nodetest.Conf) (n *nodetest.Node, hostile, a, b *nodetest.Pod) {
	t.Helper()
	n = nodetest.NewNode(t, conf)
	n.Manifest("pods.yaml", pods("hostile", "e")+"\n---\n"+pods("quiet", "a", "b")+"\n---\n"+denyAll)
	n.StartAgent()
	noReversePath(t)
	return n, n.AddPod("hostile", "e"), n.AddPod("quiet", "a"), n.AddPod("quiet", "b")
}

// noReversePath turns off rp_filter, so that only weir's own checks can drop packets.
func noReversePath(t *testing.T) {
	t.Helper()
	nodetest.Run(t, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done")
}

// linkLocal returns a MAC to which bridges don't forward frames (IEEE 802.1D, table 7-10).
func linkLocal(last byte) net.HardwareAddr { return net.HardwareAddr{1, 0x80, 0xc2, 0, 0, last} }

var lldp = linkLocal(0x0e)

type mailbox struct{ conn net.PacketConn }

func listen(t *testing.T, netns, network, address string) *mailbox {
	t.Helper()
	m := &mailbox{}
	nodetest.In(t, netns, func() (err error) {
		m.conn, err = net.ListenPacket(network, address)
		return err
	})
	t.Cleanup(func() { _ = m.conn.Close() })
	return m
}

func (m *mailbox) heard(t *testing.T, quiet time.Duration) []string {
	t.Helper()
	var all []string
	buf := make([]byte, 64<<10)
	for {
		if err := m.conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			t.Fatal(err)
		}
		k, _, err := m.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(buf[:k]))
	}
}

// awaited waits up to ten seconds for a first datagram, and fails the test if none arrives. Then it calls the method
// heard to collect more datagrams. It returns all datagrams.
func (m *mailbox) awaited(t *testing.T) []string {
	t.Helper()
	buf := make([]byte, 64<<10)
	if err := m.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	k, _, err := m.conn.ReadFrom(buf)
	if err != nil {
		t.Fatalf("what must arrive doesn't: %v", err)
	}
	return append([]string{string(buf[:k])}, m.heard(t, silence)...)
}

// TestFramesToLinkLocalMACs: a frame with a forged sender to a link-local MAC reaches no service of the node.
func TestFramesToLinkLocalMACs(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, a, _ := hostileNode(t, nil)
	reachNoService(t, e, a)
}

// TestFramesToLinkLocalMACsWithoutAnAgent: a frame with a forged sender to a link-local MAC reaches no service of the
// node, even if no agent has ever run.
func TestFramesToLinkLocalMACsWithoutAnAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{"enforcement": "off"})
	e, a := n.AddPod("hostile", "e"), n.AddPod("quiet", "a")
	noReversePath(t)
	reachNoService(t, e, a)
}

// reachNoService checks that pod e reaches no service of the node with packets to link-local MACs. An ordinary packet
// of pod a must reach the service.
func reachNoService(t *testing.T, e, a *nodetest.Pod) {
	t.Helper()
	service := listen(t, nodetest.Self, "udp", ":9999")
	mac := macOf(t, e.Netns, "eth0")
	var frames [][]byte
	for last := range byte(16) {
		for src, dst := range map[string]string{"203.0.113.9": "192.0.2.2", "2001:db8:9::9": "2001:db8::2"} {
			say := fmt.Appendf(nil, "%s to 01:80:c2:00:00:%02x", src, last)
			packet := datagram(src, dst, 9999, say)
			frames = append(frames, nodetest.Frame(t, layersOf(ethernet(linkLocal(last), mac, dst), packet...)...))
			// A tag with VLAN ID 0 only sets a priority, and the kernel removes it.
			tag := &layers.Dot1Q{Type: ethernet(nil, nil, dst).EthernetType}
			tagged := &layers.Ethernet{DstMAC: linkLocal(last), SrcMAC: mac, EthernetType: layers.EthernetTypeDot1Q}
			say = append(say, " under a tag"...)
			packet = datagram(src, dst, 9999, say)
			frames = append(frames, nodetest.Frame(t, append(layersOf(tagged, tag), packet...)...))
		}
	}
	nodetest.SendFrames(t, e.Netns, "eth0", frames...)
	for _, say := range service.heard(t, silence) {
		t.Errorf("the node heard E: %s", say)
	}
	own := nodetest.Frame(t, layersOf(ethernet(macOf(t, nodetest.Self, "weir0"), macOf(t, a.Netns, "eth0"), a.IP),
		datagram(a.IP, "192.0.2.2", 9999, []byte("a"))...)...)
	nodetest.SendFrames(t, a.Netns, "eth0", own)
	if got := service.awaited(t); len(got) != 1 {
		t.Errorf("an ordinary packet of another pod's was heard %d times", len(got))
	}
}

// TestARPToLinkLocalMACs: the node doesn't answer ARP requests that a pod sends to link-local MACs, and doesn't learn
// the sender's MAC from them.
func TestARPToLinkLocalMACs(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, _, _ := hostileNode(t, nil)
	mac := macOf(t, e.Netns, "eth0")
	sniffer := nodetest.Sniff(t, e.Netns, "eth0")
	for last := range byte(16) {
		nodetest.SendFrames(t, e.Netns, "eth0", nodetest.Frame(t,
			&layers.Ethernet{DstMAC: linkLocal(last), SrcMAC: mac, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{
				AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
				Operation: layers.ARPRequest, SourceHwAddress: mac, SourceProtAddress: []byte{198, 51, 100, 66},
				DstHwAddress: make([]byte, 6), DstProtAddress: []byte{192, 0, 2, 2},
			}))
	}
	for _, f := range sniffer.Frames(false, silence) {
		if bytes.Equal(f[12:14], []byte{8, 6}) {
			t.Errorf("the node answered: %x", f)
		}
	}
	if got := nodetest.Run(t, "ip", "neigh", "show"); strings.Contains(got, "198.51.100.66") {
		t.Errorf("the node has E's claim among its neighbours:\n%s", got)
	}
}

func frags(t *testing.T) (all string) {
	t.Helper()
	nodetest.In(t, nodetest.Self, func() error {
		for _, name := range []string{"sockstat", "sockstat6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(data)) {
				if strings.HasPrefix(line, "FRAG") {
					all += line
				}
			}
		}
		return nil
	})
	return all
}

// TestFragmentsToLinkLocalMACs: fragments in frames to link-local MACs take no memory of the node.
func TestFragmentsToLinkLocalMACs(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, _, _ := hostileNode(t, nil)
	mac := macOf(t, e.Netns, "eth0")
	var frames [][]byte
	for id := range 1000 {
		frames = append(frames, firstFragment(t, lldp, mac, "203.0.113.9", "192.0.2.2", id, 8),
			firstFragment(t, lldp, mac, "2001:db8:9::9", "2001:db8::2", id, 8))
	}
	nodetest.SendFrames(t, e.Netns, "eth0", frames...)
	if got := frags(t); got != "FRAG: inuse 0 memory 0\nFRAG6: inuse 0 memory 0\n" {
		t.Errorf("after E's fragments the node holds\n%s", got)
	}
}

func nodesOf(own, other string) string {
	return nodeManifest("self", 0, own, "10.88.0.0/24") + nodeManifest("other", 0, other, "10.99.0.0/24")
}

// tunnelNode makes a node with the pods e and b, and with a tunnel to another node. The last two results are MACs of
// the tunnel's ends: on this node (the result "here"), and on the other node (the result "there").
func tunnelNode(t *testing.T, own, other string) (n *nodetest.Node, e, b *nodetest.Pod, here, there net.HardwareAddr) {
	t.Helper()
	n = nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("hostile", "e")+"\n---\n"+pods("quiet", "b")+"\n---\n"+denyAll+nodesOf(own, other))
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self")
	n.Eventually("the tunnel is there", func() error {
		out, err := exec.Command("bridge", "fdb", "show", "dev", "weir-vxlan").CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("dst "+other)) {
			return fmt.Errorf("%w: %s", err, out)
		}
		there, err = net.ParseMAC(string(out[:17]))
		return err
	})
	e, b = n.AddPod("hostile", "e"), n.AddPod("quiet", "b")
	noReversePath(t)
	return n, e, b, macOf(t, nodetest.Self, "weir-vxlan"), there
}

func tunnelPacket(t *testing.T, src, dst string, inner []byte) []gopacket.SerializableLayer {
	t.Helper()
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, 88, 0}, inner...)
	return datagram(src, dst, 4789, vxlan)
}

// forgesTunnel checks that a pod's tunnel packets to link-local MACs don't arrive. A tunnel packet from the other node
// must arrive.
func forgesTunnel(t *testing.T, own, other string) {
	_, e, b, here, there := tunnelNode(t, own, other)
	box := listen(t, b.Netns, "udp", ":9999")
	forged := func(outer net.HardwareAddr, src net.HardwareAddr, say string) []byte {
		inner := nodetest.Frame(t,
			layersOf(ethernet(here, there, b.IP), datagram("10.99.0.7", b.IP, 9999, []byte(say))...)...)
		return nodetest.Frame(t, layersOf(ethernet(outer, src, own), tunnelPacket(t, other, own, inner)...)...)
	}
	for last := range byte(16) {
		nodetest.SendFrames(t, e.Netns, "eth0",
			forged(linkLocal(last), macOf(t, e.Netns, "eth0"), fmt.Sprintf("01:80:c2:00:00:%02x", last)))
	}
	for _, say := range box.heard(t, silence) {
		t.Errorf("a pod believes what E says for another: %s", say)
	}
	nodetest.SendFrames(t, "/run/netns/outside", "eth0",
		forged(macOf(t, nodetest.Self, "eth0"), macOf(t, "/run/netns/outside", "eth0"), "real"))
	if got := box.awaited(t); len(got) != 1 {
		t.Errorf("a packet out of the tunnel was heard %d times", len(got))
	}
}

func TestForgedTunnelFramesOverIPv4(t *testing.T) {
	if nodetest.IsolatedWithWeir(t) {
		forgesTunnel(t, "192.0.2.2", "192.0.2.1")
	}
}

func TestForgedTunnelFramesOverIPv6(t *testing.T) {
	if nodetest.IsolatedWithWeir(t) {
		forgesTunnel(t, "2001:db8::2", "2001:db8::1")
	}
}

// TestPortsOfAnEarlierWeir: an earlier version of weir has made pods' ports without the guard (the tables that check
// frames from pods), and without protection against router advertisements. The new agent makes the guard, and removes
// the IPv6 addresses and routes of these ports.
func TestPortsOfAnEarlierWeir(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, e, a, b := hostileNode(t, nil)
	n.StopAgent()
	port := portOf(t, e)
	nodetest.Run(t, "sh", "-c", "nft flush ruleset; for l in weir0 "+port+"; do "+
		"echo 1 >/proc/sys/net/ipv6/conf/$l/accept_ra; ip addr add fe80::1/64 dev $l nodad; done; "+
		"ip -6 route add default via fe80::bad dev "+port+" proto ra metric 10")
	n.StartAgent()
	// The agent may be ready before the node settings are set, because another goroutine sets them.
	n.Eventually("the router's route and the addresses are removed", func() error {
		got := unaskedAddresses(t)
		if route := nodetest.Run(t, "ip", "-6", "route", "show", "proto", "ra"); route != "" || len(got) > 0 {
			return fmt.Errorf("the node still has %v\n%s", got, route)
		}
		return nil
	})
	believesNoRouter(t)
	service := listen(t, nodetest.Self, "udp", ":9999")
	mac := macOf(t, e.Netns, "eth0")
	for src, dst := range map[string]string{"203.0.113.9": "192.0.2.2", "2001:db8:9::9": "2001:db8::2"} {
		nodetest.SendFrames(t, e.Netns, "eth0",
			nodetest.Frame(t, layersOf(ethernet(lldp, mac, dst), datagram(src, dst, 9999, []byte(src))...)...))
	}
	for _, say := range service.heard(t, silence) {
		t.Errorf("the node heard E: %s", say)
	}
	n.Serve(b.Netns, "tcp", ":80")
	n.Reach(a, b.IP+":80", true)
}

// repaired damages the guard's tables with a command of nft. It returns the time until the tables are whole again.
func repaired(t *testing.T, n *nodetest.Node, command string) time.Duration {
	t.Helper()
	before := nodetest.Run(t, "nft", "-s", "list", "chains")
	began := time.Now()
	nodetest.Run(t, "nft", command)
	n.Eventually("all is there again after: nft "+command, func() error {
		rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil || strings.Count(string(rules), `iifname "weirp*"`) != 2 ||
			strings.Count(string(rules), "goto shared") != 2 {
			return fmt.Errorf("%w: %s\nbefore:\n%s", err, rules, before)
		}
		return nil
	})
	return time.Since(began)
}

// TestThePortsTablesAreRepaired: if another program damages the guard's tables, the agent repairs them within five
// seconds.
func TestThePortsTablesAreRepaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _, _, _ := hostileNode(t, nil)
	for _, c := range []string{
		"delete table inet weir-ports", "delete table arp weir-ports", "flush chain inet weir-ports prerouting",
		"flush chain arp weir-ports input", "flush chain bridge weir fragments",
	} {
		// Several tries, because the agent may wait for a processor. If the agent ignored the kernel's messages, only a
		// resync would repair the tables. Each try after the first would then take ten seconds.
		var took time.Duration
		for range 4 {
			if took = repaired(t, n, c); took <= 5*time.Second {
				break
			}
		}
		if took > 5*time.Second {
			t.Errorf("after nft %s it took %v", c, took)
		}
	}
}

// TestTheNodesLoopback: the guard drops pods' packets to 127.0.0.0/8, even if route_localnet is set on weir0.
func TestTheNodesLoopback(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _, a, _ := hostileNode(t, nil)
	nodetest.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/weir0/route_localnet")
	n.Serve(nodetest.Self, "tcp", "127.0.0.1:8099")
	service := listen(t, nodetest.Self, "udp", "127.0.0.1:8099")
	sniffer := nodetest.Sniff(t, a.Netns, "eth0")
	eth := ethernet(macOf(t, nodetest.Self, "weir0"), macOf(t, a.Netns, "eth0"), a.IP)
	syn := &layers.TCP{SrcPort: 40000, DstPort: 8099, SYN: true, Window: 1000, Seq: 1}
	nodetest.SendFrames(t, a.Netns, "eth0",
		nodetest.Frame(t, layersOf(eth, datagram(a.IP, "127.0.0.1", 8099, []byte("127.0.0.1"))...)...),
		nodetest.Frame(t, layersOf(eth, datagram(a.IP, "127.1.2.3", 8099, []byte("127.1.2.3"))...)...),
		nodetest.Frame(t, eth, header(a.IP, "127.0.0.1", layers.IPProtocolTCP, syn), syn))
	if got := service.heard(t, silence); len(got) > 0 {
		t.Errorf("the node's loopback heard a pod: %v", got)
	}
	for _, f := range sniffer.Frames(false, silence) {
		if bytes.Equal(f[12:14], []byte{8, 0}) {
			t.Errorf("the node's loopback answered a pod: %x", f)
		}
	}
}
