package hostile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/test/nodetest"
)

const (
	udpPort = 7777
	tcpPort = 7778
)

// world is a node with the hostile pod E, two other pods, and a host outside. This host is also the other node of the
// cluster. The strings are paths of network namespaces.
type world struct {
	node, e, victim, third, outside string
	has4, has6                      bool // whether the pods have IPv4 and IPv6

	eMAC, victimMAC, thirdMAC, bridgeMAC, portMAC, uplinkMAC, tunnelMAC, peerTunnelMAC net.HardwareAddr

	e4, e6, victim4, victim6, third4, third6 netip.Addr
}

var (
	gateway4, gateway6   = netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd00:10:88::1")
	uplink4, uplink6     = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	outside4, outside6   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	peer4, peer6         = netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")
	peerPod4, peerPod6   = netip.MustParseAddr("10.89.0.2"), netip.MustParseAddr("fd00:10:89::2")
	free4, free6         = netip.MustParseAddr("10.88.0.77"), netip.MustParseAddr("fd00:10:88::77")
	network4, broadcast4 = netip.MustParseAddr("10.88.0.0"), netip.MustParseAddr("10.88.0.255")
)

type families struct{ four, six bool }

// quicken makes new IPv6 addresses usable at once. By default, the kernel first looks for duplicates.
func quicken(t testing.TB, path string) {
	t.Helper()
	sysctl(t, path, "ipv6/conf/default/accept_dad", "0")
	sysctl(t, path, "ipv6/conf/default/dad_transmits", "0")
}

func (w *world) surroundings(t testing.TB) {
	t.Helper()
	name, node := filepath.Base(w.outside), filepath.Base(w.node)
	if w.node == nodetest.Self {
		node = ""
	} else {
		node = " -n " + node
	}
	for _, a := range []netip.Addr{outside4, outside6, peer4, peer6} {
		nodetest.RunEach(t, "ip"+node+" neigh replace "+a.String()+" lladdr "+outsideMAC+" dev eth0 nud permanent")
	}
	nodetest.RunEach(t,
		"ip -n "+name+" addr add 192.0.2.3/24 dev eth0",
		// With preferred_lft 0, the address is never chosen as a source.
		"ip -n "+name+" addr add 2001:db8::3/64 dev eth0 nodad preferred_lft 0",
		"ip -n "+name+" route add 10.88.0.0/24 via 192.0.2.2",
		"ip -n "+name+" -6 route add fd00:10:88::/64 via 2001:db8::2",
	)
}

// control makes the same bridge and veth pairs as weir, but no guard and no rules. Of weir's sysctls, it sets only
// those for forwarding.
func control(t testing.TB, fam families, prefix string) *world {
	t.Helper()
	w := &world{
		has4:    fam.four,
		has6:    fam.six,
		e4:      netip.MustParseAddr("10.88.0.2"),
		victim4: netip.MustParseAddr("10.88.0.3"),
		third4:  netip.MustParseAddr("10.88.0.4"),
		e6: netip.MustParseAddr(
			"fd00:10:88::2",
		),
		victim6:   netip.MustParseAddr("fd00:10:88::3"),
		third6:    netip.MustParseAddr("fd00:10:88::4"),
		bridgeMAC: hostMAC(gateway4),
		uplinkMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}
	for _, ns := range []struct {
		path *string
		name string
	}{{&w.node, "node"}, {&w.e, "e"}, {&w.victim, "victim"}, {&w.third, "third"}, {&w.outside, "outside"}} {
		*ns.path = nodetest.NewNS(t, prefix+ns.name)
		t.Cleanup(func() { nodetest.DelNS(t, *ns.path) })
	}
	ip := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			nodetest.RunEach(t, "ip -n "+prefix+strings.ReplaceAll(l, "netns ", "netns "+prefix))
		}
	}
	for _, path := range []string{w.node, w.e, w.victim, w.third} {
		quicken(t, path)
	}
	ip("node link set lo up", "outside link set lo up",
		"node link add eth0 address 02:00:00:00:00:02 type veth peer name eth0 address 02:00:00:00:00:01 netns outside",
		"node addr add 192.0.2.2/24 dev eth0", "node addr add 2001:db8::2/64 dev eth0 nodad", "node link set eth0 up",
		"outside addr add 192.0.2.1/24 dev eth0", "outside addr add 2001:db8::1/64 dev eth0 nodad",
		"outside link set eth0 up",
		"node route add default via 192.0.2.1", "node -6 route add default via 2001:db8::1",
		"node link add weir0 address "+w.bridgeMAC.String()+" type bridge mcast_snooping 0", "node link set weir0 up",
	)
	w.surroundings(t)
	if fam.four {
		w.sysctl(t, "ipv4/ip_forward", "1")
		ip("node addr add 10.88.0.1/24 dev weir0")
	}
	if fam.six {
		w.sysctl(t, "ipv6/conf/all/forwarding", "1")
		ip("node addr add fd00:10:88::1/128 dev weir0 nodad", "node -6 route add fd00:10:88::/64 dev weir0")
	}
	w.controlTunnel(t, prefix+"node")
	for _, pod := range []struct {
		name  string
		addrs []netip.Addr
		mac   *net.HardwareAddr
	}{
		{"e", []netip.Addr{w.e4, w.e6}, &w.eMAC},
		{"victim", []netip.Addr{w.victim4, w.victim6}, &w.victimMAC},
		{"third", []netip.Addr{w.third4, w.third6}, &w.thirdMAC},
	} {
		*pod.mac = hostMAC(pod.addrs[0])
		port, ns, mac := "weirp"+pod.name, pod.name, pod.mac.String()
		ip(ns+" link set lo up",
			"node link add "+port+" type veth peer name eth0 address "+mac+" netns "+ns,
			"node link set "+port+" master weir0",
			"node link set "+port+" type bridge_slave isolated on learning off flood off mcast_flood off bcast_flood off",
			"node link set "+port+" up")
		nodetest.RunEach(t, "bridge -n "+prefix+"node fdb add "+mac+" dev "+port+" master static")
		for i, wanted := range []bool{fam.four, fam.six} {
			if !wanted {
				continue
			}
			gateway, bits := []netip.Addr{gateway4, gateway6}[i], []string{"/32", "/128 nodad"}[i]
			addr, length, _ := strings.Cut(pod.addrs[i].String()+bits, " ")
			ip(ns+" link set eth0 addrgenmode none", ns+" addr add "+addr+" dev eth0 "+length, ns+" link set eth0 up",
				ns+" neigh replace "+gateway.String()+" lladdr "+w.bridgeMAC.String()+" dev eth0 nud permanent",
				ns+" route add "+gateway.String()+" dev eth0", ns+" route add default via "+gateway.String()+" dev eth0 onlink",
				"node neigh replace "+pod.addrs[i].String()+" lladdr "+mac+" dev weir0 nud permanent")
		}
	}
	w.finish(t)
	return w
}

func (w *world) controlTunnel(t testing.TB, node string) {
	t.Helper()
	local, remote := w.underlay()
	w.tunnelMAC, w.peerTunnelMAC = tunnelMAC(local), tunnelMAC(remote)
	via6 := "fe80::" + strings.ReplaceAll(
		fmt.Sprintf("%x:%x:%x", []byte(w.peerTunnelMAC[:2]), []byte(w.peerTunnelMAC[2:4]), []byte(w.peerTunnelMAC[4:])),
		" ",
		"",
	)
	peer := w.peerTunnelMAC.String()
	nodetest.RunEach(t,
		"ip -n "+node+" link add weir-vxlan address "+w.tunnelMAC.String()+" type vxlan id 88 local "+local.String()+
			" dstport 4789 nolearning",
		"ip -n "+node+" link set weir-vxlan up",
		"bridge -n "+node+" fdb replace "+peer+" dev weir-vxlan dst "+remote.String()+" self permanent",
	)
	if w.has4 {
		nodetest.RunEach(t, "ip -n "+node+" neigh replace 10.89.0.0 lladdr "+peer+" dev weir-vxlan nud permanent",
			"ip -n "+node+" route add 10.89.0.0/24 via 10.89.0.0 dev weir-vxlan onlink")
	}
	if w.has6 {
		nodetest.RunEach(t, "ip -n "+node+" neigh replace "+via6+" lladdr "+peer+" dev weir-vxlan nud permanent",
			"ip -n "+node+" -6 route add fd00:10:89::/64 via "+via6+" dev weir-vxlan onlink")
	}
}

func (w *world) underlay() (local, remote netip.Addr) {
	if w.has4 {
		return uplink4, peer4
	}
	return uplink6, peer6
}

// hostMAC returns the MAC that weir gives to a pod or bridge with this IPv4 address.
func hostMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

func tunnelMAC(node netip.Addr) net.HardwareAddr {
	b := node.AsSlice()
	if node.Is6() {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}

// guarded makes a node with weir. A policy denies all connections from and to the hostile pod (E). The other pods have
// no policies.
func guarded(t testing.TB, fam families) *world {
	t.Helper()
	w := &world{has4: fam.four, has6: fam.six, node: nodetest.Self, uplinkMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	var ranges []any
	var cidrs, peerCIDRs []string
	if fam.four {
		ranges = append(ranges, nodetest.Conf{"subnet": "10.88.0.0/24"})
		cidrs, peerCIDRs = append(cidrs, "10.88.0.0/24"), append(peerCIDRs, "10.89.0.0/24")
	}
	if fam.six {
		ranges = append(ranges, nodetest.Conf{"subnet": "fd00:10:88::/64"})
		cidrs, peerCIDRs = append(cidrs, "fd00:10:88::/64"), append(peerCIDRs, "fd00:10:89::/64")
	}
	quicken(t, w.node)
	n := nodetest.NewNode(t, nodetest.Conf{"ranges": ranges})
	w.outside = n.Outside
	w.surroundings(t)
	local, remote := w.underlay()
	w.tunnelMAC, w.peerTunnelMAC = tunnelMAC(local), tunnelMAC(remote)
	n.Manifest("all.yaml", fmt.Sprintf(manifests, strings.Join(cidrs, ", "), local, strings.Join(peerCIDRs, ", "), remote))
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "a")
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	for _, name := range []string{"e", "victim", "third"} {
		quicken(t, nodetest.NewNS(t, "ns-1."+name))
	}
	e, victim, third := n.AddPod("ns-1", "e"), n.AddPod("ns-1", "victim"), n.AddPod("ns-1", "third")
	w.e, w.victim, w.third = e.Netns, victim.Netns, third.Netns
	addr := func(s string, otherwise netip.Addr) netip.Addr {
		if s == "" {
			return otherwise
		}
		return netip.MustParseAddr(s)
	}
	w.e4, w.victim4, w.third4 = addr(
		e.IP,
		netip.MustParseAddr("10.88.0.2"),
	), addr(
		victim.IP,
		netip.MustParseAddr("10.88.0.3"),
	), addr(
		third.IP,
		netip.MustParseAddr("10.88.0.4"),
	)
	w.e6, w.victim6, w.third6 = addr(
		e.IP6,
		netip.MustParseAddr("fd00:10:88::2"),
	), addr(
		victim.IP6,
		netip.MustParseAddr("fd00:10:88::3"),
	), addr(
		third.IP6,
		netip.MustParseAddr("fd00:10:88::4"),
	)
	w.bridgeMAC = w.link(t, w.node, "weir0").Attrs().HardwareAddr
	w.victimMAC, w.thirdMAC = w.link(t, w.victim, "eth0").Attrs().HardwareAddr,
		w.link(t, w.third, "eth0").Attrs().HardwareAddr
	w.finish(t)
	n.Eventually("the node has its end of the tunnel", func() error {
		_, err := netlink.LinkByName("weir-vxlan")
		return err
	})
	if got := w.link(t, w.node, "weir-vxlan").Attrs().HardwareAddr; got.String() != w.tunnelMAC.String() {
		t.Fatalf("the tunnel's end has the MAC %s, and the frames are built for %s", got, w.tunnelMAC)
	}
	return w
}

const manifests = `
{apiVersion: v1, kind: Namespace, metadata: {name: ns-1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: e, namespace: ns-1, labels: {app: e}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: victim, namespace: ns-1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: third, namespace: ns-1}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nothing, namespace: ns-1}
spec: {podSelector: {matchLabels: {app: e}}, policyTypes: [Ingress, Egress]}
---
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: "%s"}]}
---
apiVersion: v1
kind: Node
metadata: {name: b}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: "%s"}]}
`

func (w *world) finish(t testing.TB) {
	t.Helper()
	e := w.link(t, w.e, "eth0").Attrs()
	w.eMAC = e.HardwareAddr
	nodetest.In(t, w.node, func() error {
		port, err := netlink.LinkByIndex(e.ParentIndex)
		if err == nil {
			w.portMAC = port.Attrs().HardwareAddr
		}
		return err
	})
	// portmap sets this sysctl for the first hostPort.
	w.sysctl(t, "ipv4/conf/weir0/route_localnet", "1")
	// Without these sysctls, the kernel's limits for ICMP errors would hide answers. The kernel answers an incomplete
	// packet only after a timeout, so the timeouts are short.
	w.sysctl(t, "ipv4/icmp_ratelimit", "0")
	w.sysctl(t, "ipv6/icmp/ratelimit", "0")
	w.sysctl(t, "ipv4/icmp_msgs_per_sec", "100000")
	w.sysctl(t, "ipv4/icmp_msgs_burst", "100000")
	w.sysctl(t, "ipv4/ipfrag_time", "1")
	w.sysctl(t, "ipv6/ip6frag_time", "1")
	w.sysctl(t, "netfilter/nf_conntrack_frag6_timeout", "1")
	n := &nodetest.Node{TB: t}
	for _, ns := range []string{w.node, w.victim, w.third, w.outside} {
		n.Serve(ns, "udp", fmt.Sprintf("[::]:%d", udpPort))
		n.Serve(ns, "tcp", fmt.Sprintf("[::]:%d", tcpPort))
	}
}

func (w *world) link(t testing.TB, ns, name string) (link netlink.Link) {
	t.Helper()
	nodetest.In(t, ns, func() (err error) {
		link, err = netlink.LinkByName(name)
		return err
	})
	return link
}

func (w *world) sysctl(t testing.TB, key, value string) { sysctl(t, w.node, key, value) }

func sysctl(t testing.TB, path, key, value string) {
	t.Helper()
	nodetest.In(t, path, func() error {
		err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

func (w *world) reversePath(t testing.TB, value int) {
	t.Helper()
	nodetest.In(t, w.node, func() error {
		keys, err := filepath.Glob("/proc/sys/net/ipv4/conf/*/rp_filter")
		if err == nil && len(keys) == 0 {
			err = errors.New("the node has no rp_filter")
		}
		for _, key := range keys {
			err = errors.Join(err, os.WriteFile(key, fmt.Append(nil, value), 0o600))
		}
		return err
	})
}
