package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	onlyIPv6  = nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "fd00:10:88::/64"}}}
	dualStack = nodetest.Conf{
		"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"}},
	}
)

func TestWalkthroughIPv6(t *testing.T)      { walkthrough(t, onlyIPv6) }
func TestWalkthroughDualStack(t *testing.T) { walkthrough(t, dualStack) }

func walkthrough(t *testing.T, ranges nodetest.Conf) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, ranges)
	before := leftovers(t)
	server, client, other := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(n.Outside, "tcp", ":80")
	n.Serve(nodetest.Self, "tcp", ":80")
	hosts := []string{"[" + server.IP6 + "]"}
	world := []string{"[2001:db8::1]", "[2001:db8::2]", "[fd00:10:88::1]"} // a host outside, the node, and its bridge
	if server.IP != "" {
		hosts, world = append(hosts, server.IP), append(world, "192.0.2.1", "192.0.2.2", "10.88.0.1")
	}
	all := func(from *nodetest.Pod, hosts []string, want bool) {
		t.Helper()
		for _, h := range hosts {
			n.Reach(from, h+":80", want)
		}
	}
	all(client, hosts, true)
	all(other, hosts, true)
	all(client, world, true)
	if got := nodetest.Greeting(t, client.Netns, hosts[0]+":80"); got != "hello "+client.IP6 {
		t.Errorf("a pod's server sees %q; want the client's own address", got)
	}
	if got := nodetest.Greeting(t, client.Netns, world[0]+":80"); got != "hello 2001:db8::2" {
		t.Errorf("a server outside sees %q; want the node's address", got)
	}
	var open []net.Conn
	for _, h := range hosts {
		open = append(open, nodetest.Connect(t, client.Netns, "tcp", h+":80"),
			nodetest.Connect(t, nodetest.Self, "tcp", h+":80"))
	}
	goesOn := func(conn net.Conn, want bool) {
		t.Helper()
		n.Eventually(fmt.Sprintf("%s to %s goes on: %v", conn.LocalAddr(), conn.RemoteAddr(), want), func() error {
			if err := exchange(conn); (err == nil) != want {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
	}

	n.Manifest("policy.yaml", denyAll)
	all(client, hosts, false)
	all(other, hosts, false)
	for i, conn := range open {
		goesOn(conn, i%2 == 1) // every second connection comes from the node
	}
	for _, h := range hosts {
		n.ReachFrom(nodetest.Self, h+":80", true)
		n.ReachFrom(n.Outside, h+":80", false)
	}
	for _, c := range []string{
		"-A PREROUTING -d fd00:99::1 -j DNAT --to-destination " + server.IP6,
		"-A POSTROUTING -s " + server.IP6 + " -d " + server.IP6 + " -j MASQUERADE",
	} {
		nodetest.Run(t, "ip6tables", append([]string{"-t", "nat"}, strings.Fields(c)...)...)
	}
	n.Reach(server, "[fd00:99::1]:80", true)
	n.Reach(client, "[fd00:99::1]:80", false)

	n.Manifest("policy.yaml", allow)
	all(client, hosts, false)
	n.Manifest("cluster.yaml", strings.Replace(cluster, "{run: busybox}", "{run: busybox, app: busybox}", 1))
	all(client, hosts, true)
	all(other, hosts, false)
	for _, conn := range open {
		goesOn(conn, true)
	}
	n.Manifest("egress.yaml", egressOnly)
	all(client, hosts, false)
	all(client, world, false)
	n.Manifest("egress.yaml", "")
	all(client, world, true)
	n.Manifest("policy.yaml", "")

	for _, p := range []*nodetest.Pod{server, client, other} {
		if _, err := n.CNI("check", p.Netns, nodetest.Args(p.Namespace, p.Name, "")); err != nil {
			t.Error(err)
		}
		n.DelPod(p)
	}
	for line := range strings.Lines(nodetest.Run(t, "conntrack", "-L", "-f", "ipv6")) {
		if strings.Contains(line, "src="+server.IP6) && !strings.Contains(line, "UNREPLIED") {
			t.Errorf("a connection of a pod that is gone: %s", line)
		}
	}
	n.Eventually("nothing of the pods is left", func() error {
		if diff := leftBehind(t, before); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
}

// TestResultOfBothFamilies: if a pod has both families, the result of ADD has both. CHECK fails if a part of the
// pod's IPv6 is missing, such as the pod's address or a set entry.
func TestResultOfBothFamilies(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	p := n.AddPod("ns-1", "busybox")
	var r current.Result
	if err := json.Unmarshal([]byte(p.Result), &r); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ip := range r.IPs {
		got = append(got, ip.Address.String()+" "+ip.Gateway.String())
	}
	for _, route := range r.Routes {
		got = append(got, route.Dst.String()+" "+route.GW.String())
	}
	want := []string{
		"10.88.0.2/32 10.88.0.1", "fd00:10:88::2/128 fd00:10:88::1", "0.0.0.0/0 10.88.0.1",
		"::/0 fd00:10:88::1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n.KillAgent() // the agent could repair the damage before CHECK sees it
	for _, tc := range []struct{ breakIt, want string }{
		{nodetest.TakeOutOf(nodetest.PodSet, p.IP6), "weir-pods6"},
		{"ip -n ns-1.busybox addr del " + p.IP6 + "/128 dev eth0", p.IP6},
		{"ip neigh del " + p.IP6 + " dev weir0", p.IP6},
		{"ip -n ns-1.busybox -6 route del default", "default route via fd00:10:88::1"},
		{"nft flush set bridge weir senders6", "the guard"},
	} {
		f := strings.Fields(tc.breakIt)
		nodetest.Run(t, f[0], f[1:]...)
		if _, err := n.CNI("check", p.Netns, nodetest.Args("ns-1", "busybox", "")); err == nil ||
			!strings.Contains(err.Error(), tc.want) {
			t.Errorf("after %q: %v, want an error with %q", tc.breakIt, err, tc.want)
		}
	}
}

// TestForgedIPv6SendersAreDropped: the guard (table bridge weir) drops a pod's IPv6 packets whose source MAC or
// source address isn't the pod's own. It also drops all neighbour discovery messages from pods.
func TestForgedIPv6SendersAreDropped(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	victim, pod := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	four := n.AddPod("ns-2", "other") // its IPv6 address is removed from the guard's senders below
	own, others := netip.MustParseAddr(pod.IP6), netip.MustParseAddr(victim.IP6)
	gateway, free, local := netip.MustParseAddr("fd00:10:88::1"), netip.MustParseAddr("fd00:10:88::77"),
		netip.MustParseAddr("fe80::1")
	allNodes := netip.MustParseAddr("ff02::1")
	// A pod's MAC follows from its IPv4 address.
	mac := func(ip string) net.HardwareAddr { return bridge.MAC(netip.MustParseAddr(ip)) }
	me, it, toNode := mac(pod.IP), mac(victim.IP), mac("10.88.0.1")
	toAll := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	udp := udp6()

	for _, tc := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"its own", ipv6(toNode, me, own, gateway, udp), true},
		{"its own ping", ipv6(toNode, me, own, gateway, icmp6(128, nil)), true},
		{"its own, behind destination options", ipv6(toNode, me, own, gateway, behind(60, udp)), true},
		{"a fragment of its own", ipv6(toNode, me, own, gateway, fragment(185, udp)), true},
		{"a free address", ipv6(toNode, me, free, gateway, udp), false},
		{"another pod's address", ipv6(toNode, me, others, gateway, udp), false},
		{"another pod's MAC", ipv6(toNode, it, own, gateway, udp), false},
		{"another pod's MAC and address", ipv6(toNode, it, others, gateway, udp), false},
		{"the gateway's address", ipv6(toNode, me, gateway, others, udp), false},
		{"a link-local address", ipv6(toNode, me, local, gateway, udp), false},
		{"no address", ipv6(toNode, me, netip.IPv6Unspecified(), gateway, udp), false},
		{"another's, behind destination options", ipv6(toNode, me, others, gateway, behind(60, udp)), false},
		{"a fragment of another's", ipv6(toNode, me, others, gateway, fragment(0, udp)), false},
		{"IPv6 as IPv4", frame(toNode, me, unix.ETH_P_IP, ipv6(toNode, me, own, gateway, udp)[14:]), false},
		{"under a VLAN tag", tagged(ipv6(toNode, me, others, gateway, udp)), false},

		{"neighbour advertisement for another", ipv6(toNode, me, own, gateway, advertisement(others, me)), false},
		{
			"neighbour advertisement for the gateway, to all", ipv6(toAll, me, own, allNodes, advertisement(gateway, me)),
			false,
		},
		{"neighbour advertisement for a free address", ipv6(toNode, me, own, gateway, advertisement(free, me)), false},
		{"neighbour advertisement as another", ipv6(toNode, me, others, gateway, advertisement(others, me)), false},
		{
			"neighbour solicitation", ipv6(toNode, me, own, gateway, icmp6(135, append(make([]byte, 4), gateway.AsSlice()...))),
			false,
		},
		{
			"probe for a duplicate",
			ipv6(toAll, me, netip.IPv6Unspecified(), allNodes, icmp6(135, append(make([]byte, 4), others.AsSlice()...))), false,
		},
		{"router solicitation", ipv6(toAll, me, own, netip.MustParseAddr("ff02::2"), icmp6(133, make([]byte, 4))), false},
		{
			"router advertisement", ipv6(toAll, me, own, allNodes, icmp6(134, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})),
			false,
		},
		{
			"router advertisement of a router",
			ipv6(toAll, me, local, allNodes, icmp6(134, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})), false,
		},
		{"redirect", ipv6(toNode, me, own, gateway, icmp6(137, make([]byte, 36))), false},
		{
			"advertisement behind hop-by-hop options", ipv6(toNode, me, own, gateway, behind(0, advertisement(others, me))),
			false,
		},
		{
			"advertisement behind destination options", ipv6(toNode, me, own, gateway, behind(60, advertisement(others, me))),
			false,
		},
		{
			"advertisement behind both", ipv6(toNode, me, own, gateway, behind(0, behind(60, advertisement(others, me)))),
			false,
		},
		{"advertisement in a first fragment", ipv6(toNode, me, own, gateway, fragment(0, advertisement(others, me))), false},
		{
			"router advertisement behind options in a fragment",
			ipv6(toAll, me, own, allNodes, fragment(0, behind(60, icmp6(134, make([]byte, 12))))), false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := passes(t, pod.Netns, conf.Bridge, tc.frame, tc.pass); got != tc.pass {
				t.Errorf("came out of the bridge: %v, want %v", got, tc.pass)
			}
		})
	}
	t.Run("pods don't meet at layer 2", func(t *testing.T) {
		conn := packetSocket(t, victim.Netns, "eth0")
		send(t, pod.Netns, ipv6(it, me, own, others, udp))
		send(t, pod.Netns, ipv6(toAll, me, own, allNodes, udp))
		if seen(t, conn, quiet) {
			t.Error("a frame went from port to port")
		}
	})
	t.Run("a pod without an IPv6 address", func(t *testing.T) {
		link := ""
		for _, l := range leftovers(t) {
			if _, entry, ok := strings.Cut(l, "weirp"); ok && strings.HasPrefix(l, "nft ") && strings.Contains(l, four.IP6) {
				link = "weirp" + strings.Fields(entry)[0]
			}
		}
		n.KillAgent() // the agent would repair what the test now breaks
		nodetest.Run(t, "nft", "delete", "element", "bridge", "weir", "senders6", "{", strings.Trim(link, `"`), ".",
			mac(four.IP).String(), ".", four.IP6, "}")
		foreign := ipv6(toNode, mac(four.IP), netip.MustParseAddr(four.IP6), gateway, udp)
		if passes(t, four.Netns, conf.Bridge, foreign, false) {
			t.Error("it sends IPv6")
		}
		if !passes(t, four.Netns, conf.Bridge,
			ipv4(toNode, mac(four.IP), netip.MustParseAddr(four.IP), netip.MustParseAddr("10.88.0.1")), true) {
			t.Error("it doesn't send IPv4 any more")
		}
	})
}

// TestAnIPv6RangeNeedsIPv6: if IPv6 is off in a pod's namespace, ADD's error says so.
func TestAnIPv6RangeNeedsIPv6(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	before := leftovers(t)
	path := nodetest.NewNS(t, "ns-1.busybox")
	nodetest.In(t, path,
		func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600) })
	_, err := n.TryAddPod("ns-1", "busybox")
	if err == nil || !strings.Contains(err.Error(), "IPv6 is switched off in the pod") {
		t.Errorf("%v, want an error that says so", err)
	}
	n.Eventually("nothing is left", func() error {
		if diff := leftBehind(t, before); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
}

type piece struct {
	next byte
	data []byte
}

func ipv6(dstMAC, srcMAC net.HardwareAddr, src, dst netip.Addr, p piece) []byte {
	h := make([]byte, 8, 40)
	h[0], h[6], h[7] = 0x60, p.next, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(p.data)+len(marker)))
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	return frame(dstMAC, srcMAC, unix.ETH_P_IPV6, append(h, p.data...))
}

// udp6 returns a UDP header to port 9. Its checksum is wrong, but no router checks it.
func udp6() piece {
	return piece{unix.IPPROTO_UDP, []byte{0x30, 0x39, 0, 9, 0, byte(8 + len(marker)), 1, 1}}
}

func icmp6(kind byte, body []byte) piece {
	return piece{unix.IPPROTO_ICMPV6, append([]byte{kind, 0, 1, 1}, body...)}
}

func advertisement(target netip.Addr, mac net.HardwareAddr) piece {
	b := append([]byte{0x60, 0, 0, 0}, target.AsSlice()...)
	return icmp6(136, append(append(b, 2, 1), mac...))
}

// behind puts an IPv6 options header before the piece. The header contains only padding (RFC 8200, section 4). kind
// is the header's number: 0 for hop-by-hop options, 60 for destination options.
func behind(kind byte, p piece) piece {
	return piece{kind, append([]byte{p.next, 0, 1, 4, 0, 0, 0, 0}, p.data...)}
}

// fragment returns the piece as a fragment that isn't the packet's last. The offset is in units of eight bytes.
func fragment(offset uint16, p piece) piece {
	h := []byte{p.next, 0, 0, 0, 0, 0, 0, 7}
	binary.BigEndian.PutUint16(h[2:], offset<<3|1)
	return piece{unix.IPPROTO_FRAGMENT, append(h, p.data...)}
}
