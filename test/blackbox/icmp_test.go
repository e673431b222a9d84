package blackbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

// tenants has a policy that denies all connections from and to the pod attacker. The other pods have no policies.
const tenants = `
apiVersion: v1
kind: Namespace
metadata: {name: attack}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: attacker, namespace: attack, labels: {app: attacker}}
---
apiVersion: v1
kind: Pod
metadata: {name: open, namespace: shop, labels: {app: open}}
---
apiVersion: v1
kind: Pod
metadata: {name: victim, namespace: shop, labels: {app: victim}}
---
apiVersion: v1
kind: Pod
metadata: {name: peer, namespace: shop, labels: {app: peer}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: attack}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

var dualStack = rangesOf("10.88.0.0/24", "fd00:10:88::/64")

func rangesOf(subnets ...string) nodetest.Conf {
	var ranges []any
	for _, s := range subnets {
		ranges = append(ranges, nodetest.Conf{"subnet": s})
	}
	return nodetest.Conf{"ranges": ranges}
}

var otherPlugins = map[string]nodetest.Conf{
	"ptp": {"type": "ptp", "ipam": hostLocal},
	"bridge": {
		"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": hostLocal,
	},
}

var hostLocal = nodetest.Conf{
	"type": "host-local",
	"ranges": []any{
		[]any{nodetest.Conf{"subnet": "10.99.0.0/24"}}, []any{nodetest.Conf{"subnet": "fd00:10:99::/64"}},
	},
	"routes": []any{nodetest.Conf{"dst": "0.0.0.0/0"}, nodetest.Conf{"dst": "::/0"}},
}

func isolatedBehind(t *testing.T, plugin string) bool {
	t.Helper()
	if plugin == "weir" {
		return nodetest.IsolatedWithWeir(t)
	}
	return nodetest.IsolatedWithWeir(t, "main/"+plugin, "ipam/host-local")
}

// attachedBy makes a node with an agent. If plugin isn't "weir", the named plugin attaches the pods, and weir and
// portmap are chained behind it.
func attachedBy(t *testing.T, plugin, manifests string) *nodetest.Node {
	t.Helper()
	n := nodetest.NewNode(t, dualStack)
	if plugin != "weir" {
		n.ConfigureList(otherPlugins[plugin], nodetest.Conf{"type": "weir"},
			nodetest.Conf{"type": "portmap", "snat": true, "capabilities": nodetest.Conf{"portMappings": true}})
	}
	nodetest.RunEach(t,
		"ip -n outside route add 10.99.0.0/24 via 192.0.2.2", "ip -n outside route add fd00:10:99::/64 via 2001:db8::2",
		"ip -n outside route add 10.88.0.0/24 via 192.0.2.2", "ip -n outside route add fd00:10:88::/64 via 2001:db8::2",
	)
	// Package net checks only once which families work, by binding to ::1. This call makes net check here, because
	// the check would fail in a pod whose loopback link is down.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	n.Manifest("cluster.yaml", manifests)
	n.StartAgent()
	n.Eventually("the agent reads drops", func() error {
		_, err := n.Ctl("drops")
		return err
	})
	return n
}

func dial(t *testing.T, netns, address string) *net.UDPConn {
	t.Helper()
	conn, err := nodetest.Dial(t, netns, "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := speak(conn); err != nil {
		t.Fatalf("from %s to %s: %v", netns, address, err)
	}
	return conn.(*net.UDPConn)
}

func speak(conn net.Conn) error {
	var err error
	for range 20 { // many tries, because the machine may be busy
		if _, err = conn.Write([]byte("question")); err != nil {
			return err
		}
		if err = conn.SetReadDeadline(time.Now().Add(250 * time.Millisecond)); err != nil {
			return err
		}
		if _, err = conn.Read(make([]byte, 100)); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return err
}

func ended(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := conn.Read(make([]byte, 100))
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EPROTO)
}

func heard(s *nodetest.Sniffer, words ...string) []string {
	var all []string
	for _, frame := range s.Frames(false, 100*time.Millisecond) {
		for _, w := range words {
			if strings.Contains(string(frame), w) {
				all = append(all, w)
			}
		}
	}
	return all
}

// world has the pods of the tests. The host outside and all pods except the attacker have a server on UDP port 53.
type world struct {
	attacker, open, victim, peer *nodetest.Pod
}

func newWorld(t *testing.T, plugin string) (*nodetest.Node, world) {
	t.Helper()
	n := attachedBy(t, plugin, tenants)
	w := world{
		n.AddPod("attack", "attacker"), n.AddPod("shop", "open"), n.AddPod("shop", "victim"), n.AddPod("shop", "peer"),
	}
	n.Serve(n.Outside, "udp", ":53")
	for _, p := range []*nodetest.Pod{w.open, w.victim, w.peer} {
		n.Serve(p.Netns, "udp", ":53")
	}
	nodetest.In(t, w.victim.Netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/accept_redirects", []byte("1"), 0o600)
	})
	return n, w
}

func TestForgedErrors(t *testing.T)             { forgedErrors(t, "weir") }
func TestForgedErrorsBehindPtp(t *testing.T)    { forgedErrors(t, "ptp") }
func TestForgedErrorsBehindBridge(t *testing.T) { forgedErrors(t, "bridge") }

// forgedErrors checks that a pod's ICMP error doesn't arrive if the pod never received the packet in the error.
// Connection tracking alone would accept such an error, because the packet in it belongs to a known connection.
func forgedErrors(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	_, w := newWorld(t, plugin)
	f := newForgery(t, w.attacker)
	atVictim, atOutside := nodetest.Sniff(t, w.victim.Netns, "eth0"), nodetest.Sniff(t, "/run/netns/outside", "eth0")
	for _, x := range []struct{ victim, peer, outside, node string }{
		{w.victim.IP, w.peer.IP, "192.0.2.1", "192.0.2.2"}, {w.victim.IP6, w.peer.IP6, "2001:db8::1", "2001:db8::2"},
	} {
		toPeer := dial(t, w.victim.Netns, net.JoinHostPort(x.peer, "53"))
		toOutside := dial(t, w.victim.Netns, net.JoinHostPort(x.outside, "53"))
		for _, conn := range []*net.UDPConn{toPeer, toOutside} {
			about := flow(conn.LocalAddr().String(), conn.RemoteAddr().String())
			for i, k := range []kind{unreachable, tooBig, exceeded, problem, redirect, quench} {
				words := fmt.Sprintf("secret %d %d about %s.", k.v4, i, about.dst)
				f.send(x.victim, k, about, words)
				if got := heard(atVictim, words); got != nil {
					t.Errorf("an error that carries %q came to the victim", got)
				}
			}
			// Here the attacker forges the error's sender: the other end of the connection, or a router.
			router := map[bool]string{false: "192.0.2.77", true: "2001:db8::77"}[about.dst.Addr().Is6()]
			for _, src := range []string{about.dst.Addr().String(), router} {
				words := fmt.Sprintf("under the name of %s about %s", src, about.dst)
				f.sendAs(netip.MustParseAddr(src), x.victim, tooBig, about, words)
				if got := heard(atVictim, words); got != nil {
					t.Errorf("an error %q came to the victim", got)
				}
			}
			if ended(conn) {
				t.Errorf("an error has ended the flow to %s", about.dst)
			}
		}
		if err := speak(toOutside); err != nil { // the kernel forgets a flow that has been silent for long
			t.Fatal(err)
		}
		seen := sentAs(t, toOutside, x.outside)
		answer := udp{seen.dst, seen.src}
		f.send(x.outside, unreachable, answer, "secret to the world")
		if got := heard(atOutside, "secret to the world"); got != nil {
			t.Errorf("an error that carries %q came to the host outside", got)
		}
		// This is an error to the node itself. If the node accepted the error, the node would send smaller packets.
		own := dial(t, nodetest.Self, net.JoinHostPort(x.outside, "53"))
		f.send(x.node, tooBig, flow(own.LocalAddr().String(), own.RemoteAddr().String()), "x")
		time.Sleep(50 * time.Millisecond)
		if route := nodetest.Run(t, "ip", "route", "get", x.outside); strings.Contains(route, "mtu ") {
			t.Errorf("an error of a pod's has made the node's packets small: %s", route)
		}
		nodetest.Run(t, "conntrack", "-F")
		newForgery(t, w.open).send(x.node, tooBig, flow(own.LocalAddr().String(), own.RemoteAddr().String()), "x")
		time.Sleep(50 * time.Millisecond)
		if route := nodetest.Run(t, "ip", "route", "get", x.outside); strings.Contains(route, "mtu ") {
			t.Errorf("an error of an open pod's has made the node's packets small: %s", route)
		}
	}
}

// TestForgedErrorsInDisguise: forged ICMP errors are dropped even if they have IP options or are in fragments.
func TestForgedErrorsInDisguise(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, w := newWorld(t, "weir")
	f := newForgery(t, w.attacker)
	at := nodetest.Sniff(t, w.victim.Netns, "eth0")
	conn := dial(t, w.victim.Netns, w.peer.IP+":53")
	inside := f.inside(flow(conn.LocalAddr().String(), conn.RemoteAddr().String()), "secret")
	from, to := netip.MustParseAddr(w.attacker.IP), netip.MustParseAddr(w.victim.IP)

	outer := ip(from, to, layers.IPProtocolICMPv4, nil).(*layers.IPv4)
	outer.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	all := append([]gopacket.SerializableLayer{f.ethernet(to), outer}, f.icmp(outer, unreachable, inside)...)
	nodetest.SendFrames(t, f.from.Netns, "eth0", nodetest.Frame(t, all...))

	whole := nodetest.Frame(t, f.icmp(ip(from, to, layers.IPProtocolICMPv4, nil), unreachable, inside)...)
	for i, part := range [][]byte{whole[:24], whole[24:]} {
		outer := ip(from, to, layers.IPProtocolICMPv4, nil).(*layers.IPv4)
		outer.Id, outer.FragOffset, outer.Flags = 7, uint16(i*3), []layers.IPv4Flag{layers.IPv4MoreFragments, 0}[i]
		nodetest.SendFrames(t, f.from.Netns, "eth0", nodetest.Frame(t, f.ethernet(to), outer, gopacket.Payload(part)))
	}

	conn = dial(t, w.victim.Netns, "["+w.peer.IP6+"]:53")
	inside = f.inside(flow(conn.LocalAddr().String(), conn.RemoteAddr().String()), "secret")
	from, to = netip.MustParseAddr(w.attacker.IP6), netip.MustParseAddr(w.victim.IP6)
	for _, extension := range []layers.IPProtocol{layers.IPProtocolIPv6Destination, layers.IPProtocolIPv6HopByHop} {
		pseudo := ip(from, to, layers.IPProtocolICMPv6, nil)
		message := nodetest.Frame(t, f.icmp(pseudo, unreachable, inside)...)
		behind := append([]byte{byte(layers.IPProtocolICMPv6), 0, 1, 4, 0, 0, 0, 0}, message...)
		frame := nodetest.Frame(t, f.ethernet(to), ip(from, to, extension, nil), gopacket.Payload(behind))
		nodetest.SendFrames(t, f.from.Netns, "eth0", frame)
	}
	if got := heard(at, "secret"); got != nil {
		t.Errorf("%d errors about the victim's flow came to it", len(got))
	}
}

// TestRedirectsOfPods: ICMP redirects that a pod sends are dropped.
func TestRedirectsOfPods(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, w := newWorld(t, "weir")
	f := newForgery(t, w.open)
	at := nodetest.Sniff(t, w.victim.Netns, "eth0")
	conn := dial(t, w.victim.Netns, w.open.IP+":53")
	f.send(w.victim.IP, redirect, flow(conn.LocalAddr().String(), conn.RemoteAddr().String()), "redirected")
	if got := heard(at, "redirected"); got != nil {
		t.Error("a redirect came to the victim")
	}
}

func TestControlHonestErrors(t *testing.T)             { honestErrors(t, "weir") }
func TestControlHonestErrorsBehindPtp(t *testing.T)    { honestErrors(t, "ptp") }
func TestControlHonestErrorsBehindBridge(t *testing.T) { honestErrors(t, "bridge") }

// honestErrors checks that ICMP errors reach the sender of a packet: the error of a port without a server, and the
// error of a router between the ends.
func honestErrors(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	n, w := newWorld(t, plugin)
	nodetest.RunEach(t,
		"iptables -t nat -A PREROUTING -d 10.96.0.10 -p udp -j DNAT --to-destination "+w.peer.IP,
		"ip6tables -t nat -A PREROUTING -d fd00:10:96::a -p udp -j DNAT --to-destination "+w.peer.IP6,
		"iptables -t nat -A POSTROUTING -s 192.0.2.1 -d "+w.victim.IP+" -j MASQUERADE",
	)
	refused := func(what, netns, address string) {
		t.Helper()
		n.Eventually(what, func() error {
			conn, err := nodetest.Dial(t, netns, "udp", address)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			if !ended(conn) {
				return errors.New("no error comes")
			}
			return nil
		})
	}
	refused("of a pod, by a pod", w.victim.Netns, w.peer.IP+":9")
	refused("of a pod, by a pod, IPv6", w.victim.Netns, "["+w.peer.IP6+"]:9")
	refused("of a pod, by a pod behind a Service", w.victim.Netns, "10.96.0.10:9")
	refused("of a pod, by a pod behind a Service, IPv6", w.victim.Netns, "[fd00:10:96::a]:9")
	refused("of the node, by a pod", nodetest.Self, w.peer.IP+":9")
	refused("of the node, by a pod, IPv6", nodetest.Self, "["+w.peer.IP6+"]:9")
	refused("of a host outside, by a pod", n.Outside, w.peer.IP+":9")
	refused("of a host outside, by a pod, masqueraded", n.Outside, w.victim.IP+":9")
	refused("of a pod, by the node", w.victim.Netns, "192.0.2.2:9")
	refused("of a pod, by a host outside", w.victim.Netns, "192.0.2.1:9")
	refused("of a pod, by a host outside, IPv6", w.victim.Netns, "[2001:db8::1]:9")

	// Here a router between the ends sends the error. The victim has never sent a packet to this router.
	for _, x := range []struct{ to, router, node, mtu string }{
		{"192.0.2.1", "192.0.2.77", "192.0.2.2", "mtu 552"}, {"2001:db8::1", "2001:db8::77", "2001:db8::2", "mtu 1280"},
	} {
		conn := dial(t, w.victim.Netns, net.JoinHostPort(x.to, "53"))
		seen := sentAs(t, conn, x.to)
		f := fromOutside(t, n)
		src, dst := netip.MustParseAddr(x.router), seen.src.Addr()
		outer := ip(src, dst, layers.IPProtocolICMPv4, nil)
		if dst.Is6() {
			outer = ip(src, dst, layers.IPProtocolICMPv6, nil)
		}
		all := append([]gopacket.SerializableLayer{f.ethernet(dst), outer}, f.icmp(outer, tooBig, f.inside(seen, "x"))...)
		nodetest.SendFrames(t, n.Outside, "eth0", nodetest.Frame(t, all...))
		n.Eventually("the victim hears how large packets may be", func() error {
			if route := nodetest.Run(t, "ip", "-n", "shop.victim", "route", "get", x.to); !strings.Contains(route, x.mtu) {
				return errors.New(route)
			}
			return nil
		})
	}
}

// sentAs returns the addresses and ports of a connection as its destination sees them, after masquerading.
func sentAs(t *testing.T, conn *net.UDPConn, to string) udp {
	t.Helper()
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	family := map[bool]string{false: "ipv4", true: "ipv6"}[local.Addr().Is6()]
	table := nodetest.Run(t, "conntrack", "-L", "-f", family, "-p", "udp", "-d", to, "--sport", fmt.Sprint(local.Port()))
	var reply []string
	for _, field := range strings.Fields(table) {
		if v, ok := strings.CutPrefix(field, "dst="); ok {
			reply = append(reply[:0], v)
		}
		if v, ok := strings.CutPrefix(field, "dport="); ok {
			reply = append(reply[:min(1, len(reply))], v)
		}
	}
	if len(reply) != 2 {
		t.Fatalf("no entry for the flow:\n%s", table)
	}
	return flow(net.JoinHostPort(reply[0], reply[1]), conn.RemoteAddr().String())
}
