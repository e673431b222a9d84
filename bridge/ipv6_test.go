package bridge

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/weir-net/weir/test/nodetest"
)

// TestIPv6PodsReachEachOtherThroughTheNode: pods with IPv6 addresses reach each other only through the node's FORWARD
// hook. The kernel sends no neighbour solicitations: weir makes permanent neighbour entries, and switches duplicate
// address detection off (nodad), because it would take one to two seconds.
func TestIPv6PodsReachEachOtherThroughTheNode(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const a, b, gateway = "fd00:10:88::2", "fd00:10:88::3", "fd00:10:88::1"
	for _, addrs := range []map[string]string{{"a": a, "b": b}, {"a": "10.88.0.2 " + a, "b": b + " 10.88.0.3"}} {
		n := newNodeFor(t, addrs["a"])
		var ports []Port
		for name, addr := range addrs {
			p := n.pod(name, addr)
			if err := AllowSender(p.Sender()); err != nil {
				t.Fatal(err)
			}
			if ok, err := SenderAllowed(p.Sender()); !ok || err != nil {
				t.Fatalf("Allowed after Allow: %v, %v", ok, err)
			}
			if err := Check(n.h, p, 0); err != nil {
				t.Error(err)
			}
			ports = append(ports, p)
		}
		ping := []string{"ping", "-6", "-c1", "-W1", "-I", a, b}
		// A new port doesn't forward at once, so ping often.
		nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-6", "-c1", "-w60", "-i0.05", "-I", a, b)
		for netns, link := range map[string]string{"/run/netns/a": "eth0", "/run/netns/b": "eth0", nodetest.Self: Name} {
			if sent := solicitations(t, netns, link); sent != "0" {
				t.Errorf("%s: the kernel has sent %s solicitations: it has looked for duplicates or neighbours", netns, sent)
			}
		}
		nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-6", "-c1", "-w60", gateway)
		nodetest.Run(t, "ping", "-6", "-c1", "-w60", b)
		if strings.Contains(addrs["a"], "10.88.0.2") {
			nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.3")
		}
		for _, where := range []string{"-n a -6 addr show dev eth0 scope link", "-6 addr show dev " + Name + " scope link"} {
			if out := nodetest.Run(t, "ip", strings.Fields(where)...); out != "" {
				t.Errorf("ip %s: link-local addresses:\n%s", where, out)
			}
		}
		if out := nodetest.Run(t, "ip", "-6", "neigh", "show", "dev", Name, "nud", "all"); strings.Contains(out, "FAILED") ||
			strings.Contains(out, "REACHABLE") {
			t.Errorf("the node has asked for neighbours:\n%s", out)
		}
		nodetest.Run(t, "ip6tables", "-A", "FORWARD", "-j", "DROP")
		if out, err := runIn("a", ping...); err == nil {
			t.Fatalf("pods meet beside the FORWARD hook:\n%s", out)
		}
		nodetest.Run(t, "ip6tables", "-F", "FORWARD")
		for _, p := range ports {
			if err := ForbidSender(p.Sender()); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := runIn("a", "ping", "-6", "-c1", "-W1", gateway); err == nil {
			t.Fatalf("a forbidden port got through:\n%s", out)
		}
		if err := RemoveAll(); err != nil {
			t.Fatal(err)
		}
		for name := range addrs {
			nodetest.DelNS(t, "/run/netns/"+name)
		}
		if out := nodetest.Run(t, "ip", "-6", "route"); strings.Contains(out, "fd00:10:88:") {
			t.Errorf("routes left: %s", out)
		}
	}
}

func solicitations(t *testing.T, netns, link string) (sent string) {
	t.Helper()
	nodetest.In(t, netns, func() error {
		counters, err := os.ReadFile("/proc/thread-self/net/dev_snmp6/" + link)
		for line := range strings.Lines(string(counters)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "Icmp6OutNeighborSolicits" {
				sent = f[1]
			}
		}
		return err
	})
	return sent
}

// TestABridgeGetsItsOtherFamily: if a node with IPv4 pods gets an IPv6 pod, the IPv4 pods stay connected.
func TestABridgeGetsItsOtherFamily(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	if err := AllowSender(n.pod("old", "10.88.0.2").Sender()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second call of Ensure finds nothing to do
		if _, err := Ensure(0, Gateways(address("10.88.0.3 fd00:10:88::3"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := AllowSender(n.pod("new", "10.88.0.3 fd00:10:88::3").Sender()); err != nil {
		t.Fatal(err)
	}
	nodetest.Run(t, "ip", "netns", "exec", "old", "ping", "-c1", "-w60", "-i0.05", "10.88.0.3")
	nodetest.Run(t, "ip", "netns", "exec", "new", "ping", "-6", "-c1", "-w60", "-i0.05", "fd00:10:88::1")
	if out := nodetest.Run(t, "ip", "-6", "addr", "show", "dev", Name, "scope", "link"); out != "" {
		t.Errorf("%s has a link-local address, under which the node tells pods to speak to each other directly:\n%s", Name,
			out)
	}
}

// TestWithoutIPv6: if IPv6 is switched off in a pod, AddPort's error says so, and AddPort leaves no link behind. If
// IPv6 is off on weir0, the error of Ensure says so.
func TestWithoutIPv6(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNodeFor(t, "fd00:10:88::2")
	path := nodetest.NewNS(t, "pod")
	nodetest.In(t, path,
		func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600) })
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	p := Port{
		HostIf:    PortName("pod"),
		IfName:    "eth0",
		Netns:     ns,
		MAC:       MAC(netip.MustParseAddr("fd00:10:88::2")),
		Addresses: address("fd00:10:88::2"),
	}
	if _, err := n.b.AddPort(p); err == nil || !strings.Contains(err.Error(), "IPv6 is switched off in the pod") {
		t.Errorf("in the pod: %v", err)
	}
	if _, err := n.h.LinkByName(p.HostIf); err == nil {
		t.Errorf("%s was left behind", p.HostIf)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+Name+"/disable_ipv6", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(0, Gateways(address("fd00:10:88::2"))); err == nil ||
		!strings.Contains(err.Error(), "IPv6 is switched off on the node") {
		t.Errorf("on the node: %v", err)
	}
}

// TestTheNodesOwnRouterStays: if a node's default route came from a router advertisement, the route's link still
// accepts advertisements after weir has made the node a router.
func TestTheNodesOwnRouterStays(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t)
	nodetest.Run(t, "ip", "-6", "route", "replace", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra")
	newNodeFor(t, "fd00:10:88::2")
	for key, want := range map[string]string{"eth0/accept_ra": "2", "lo/accept_ra": "1", "all/forwarding": "1"} {
		got, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + key)
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %s (%v), want %s", key, got, err, want)
		}
	}
}

func TestMACsAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, network := range []string{"fd00:10:88::", "fd00:10:89::", "2001:db8:0:1::", "10.88.0."} {
		for _, host := range []string{"2", "3", "4", "200"} {
			mac := MAC(netip.MustParseAddr(network + host)).String()
			if other, ok := seen[mac]; ok || !strings.HasPrefix(mac, "0a:58:") {
				t.Errorf("%s%s has MAC %s, as has %q", network, host, mac, other)
			}
			seen[mac] = network + host
		}
	}
	if got := MAC(netip.MustParseAddr("10.88.0.2")).String(); got != "0a:58:0a:58:00:02" {
		t.Errorf("10.88.0.2 has MAC %s", got)
	}
}
