package overlay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/nodetest"
	"github.com/weir-net/weir/policy"
)

// zones makes a router and nodes n1, n2, n3, each in a subnet of its own, 172.20.I.10/24 behind a link with MTU 1400. A
// pod's address stands on each node's loopback: 100.96.I.5.
func zones(t *testing.T) map[string]*Overlay {
	t.Helper()
	nodetest.NewNS(t, "router")
	run := func(format string, args ...any) {
		f := strings.Fields(fmt.Sprintf(format, args...))
		nodetest.Run(t, f[0], f[1:]...)
	}
	nodetest.In(t, "/run/netns/router", func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
	})
	all := map[string]*Overlay{}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprint("n", i)
		path := nodetest.NewNS(t, name)
		run("ip link add eth0 netns %s mtu 1400 type veth peer name %s mtu 1400 netns router", name, name)
		run("ip -n router addr add 172.20.%d.1/24 dev %s", i, name)
		run("ip -n router link set %s up", name)
		run("ip -n %s addr add 172.20.%d.10/24 dev eth0", name, i)
		run("ip -n %s link set lo up", name)
		run("ip -n %s link set eth0 up", name)
		run("ip -n %s route add default via 172.20.%d.1", name, i)
		run("ip -n %s addr add 100.96.%d.5/32 dev lo", name, i)
		fd, err := netns.GetFromPath(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := netlinksafe.NewHandleAt(fd, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		all[name] = New(h)
	}
	return all
}

// ask sends size bytes of UDP payload that must not be fragmented to the pod on the other node, and waits for them.
func ask(t *testing.T, from, to string, size int) error {
	t.Helper()
	var result error
	nodetest.In(t, "/run/netns/"+to, func() error {
		server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.96."+to[1:]+".5:9")))
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		nodetest.In(t, "/run/netns/"+from, func() error {
			result = send(from, to, size)
			return nil
		})
		if result != nil {
			return nil
		}
		if result = server.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); result != nil {
			return nil
		}
		_, addr, err := server.ReadFromUDPAddrPort(make([]byte, 2000))
		result = err
		if err == nil && addr.Addr().String() != "100.96."+from[1:]+".5" {
			result = fmt.Errorf("it came from %s", addr)
		}
		return nil
	})
	return result
}

func send(from, to string, size int) error {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.96."+from[1:]+".5:0")),
		net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.96."+to[1:]+".5:9")))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err == nil {
		err = optErr
	}
	if err != nil {
		return err
	}
	_, err = conn.Write(make([]byte, size))
	return err
}

func TestOverlayBetweenSubnets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	nodes := []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24"), node("n3", "172.20.3.10", "100.96.3.0/24"),
	}
	apply := func() {
		t.Helper()
		for name, o := range overlays {
			for range 2 { // the second time there is nothing to do
				if err := o.Apply(Compute(name, Always, nodes, o.SameSubnet)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
	}
	reach := func(from, to string, want bool) {
		t.Helper()
		if err := ask(t, from, to, 100); (err == nil) != want {
			t.Errorf("%s to %s: %v, want %v", from, to, err, want)
		}
	}
	reach("n1", "n2", false)
	apply()
	for _, pair := range []string{"n1 n2", "n2 n1", "n1 n3", "n3 n2"} {
		from, to, _ := strings.Cut(pair, " ")
		reach(from, to, true)
	}
	mtu, err := overlays["n1"].MTU(netip.MustParseAddr("172.20.1.10"), Always)
	if mtu != 1350 || err != nil {
		t.Errorf("MTU %d, %v; want 1350 of 1400", mtu, err)
	}
	const headers = 20 + 8 // IPv4 and UDP
	if err := ask(t, "n1", "n2", mtu-headers); err != nil {
		t.Errorf("a full-size packet doesn't pass: %v", err)
	}
	if err := ask(t, "n1", "n2", mtu-headers+1); err == nil {
		t.Error("a packet larger than the MTU passed unfragmented")
	}

	// n2 gets another address, as an instance that was replaced.
	nodetest.Run(t, "ip", "-n", "n2", "addr", "del", "172.20.2.10/24", "dev", "eth0")
	nodetest.Run(t, "ip", "-n", "n2", "addr", "add", "172.20.2.20/24", "dev", "eth0")
	nodetest.Run(t, "ip", "-n", "n2", "route", "replace", "default", "via", "172.20.2.1")
	nodes[1] = node("n2", "172.20.2.20", "100.96.2.0/24")
	apply()
	reach("n1", "n2", true)
	reach("n2", "n3", true)

	// n3 leaves: nothing of it is left.
	nodes = nodes[:2]
	delete(overlays, "n3")
	apply()
	reach("n1", "n2", true)
	reach("n1", "n3", false)
	for _, list := range []string{"route", "neigh", "-d link"} {
		args := append([]string{"-n", "n1"}, strings.Fields(list)...)
		if out := nodetest.Run(t, "ip", args...); strings.Contains(out, "100.96.3.") || strings.Contains(out, "172.20.3.") {
			t.Errorf("ip %s has the node that left:\n%s", list, out)
		}
	}
	if out := nodetest.Run(t, "bridge", "-n", "n1", "fdb", "show", "dev", "weir-vxlan"); strings.Contains(out, "172.20.3.10") || strings.Contains(out, "172.20.2.10") {
		t.Errorf("the forwarding table has addresses that are gone:\n%s", out)
	}
	if err := overlays["n1"].Remove(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "-n", "n1", "link", "show", "weir-vxlan").CombinedOutput(); err == nil {
		t.Errorf("left after Remove: %s", out)
	}
	if out := nodetest.Run(t, "ip", "-n", "n1", "route"); strings.Contains(out, "100.96.2.") {
		t.Errorf("left after Remove: %s", out)
	}
}
