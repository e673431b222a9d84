package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
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

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// zones makes a router and nodes n1, n2, n3, each in a subnet of its own. Node nI has 172.20.I.10 and
// 2001:db8:I::10. Its pod has 100.96.I.5 and fd00:96:I::5.
func zones(t *testing.T) map[string]*Overlay {
	t.Helper()
	nodetest.NewNS(t, "router")
	run := func(format string, args ...any) {
		f := strings.Fields(fmt.Sprintf(format, args...))
		nodetest.Run(t, f[0], f[1:]...)
	}
	nodetest.In(t, "/run/netns/router", func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o600))
	})
	all := map[string]*Overlay{}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprint("n", i)
		path := nodetest.NewNS(t, name)
		// A real node forwards IPv6 too: ADD sets this sysctl. Without it, the kernel would leave out a route whose
		// gateway is slow to answer, and use the default route instead.
		nodetest.In(t, path,
			func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o600) })
		run("ip link add eth0 netns %s mtu 1400 type veth peer name %s mtu 1400 netns router", name, name)
		run("ip -n router addr add 172.20.%d.1/24 dev %s", i, name)
		run("ip -n router addr add 2001:db8:%d::1/64 dev %s nodad", i, name)
		run("ip -n router link set %s up", name)
		run("ip -n %s addr add 172.20.%d.10/24 dev eth0", name, i)
		run("ip -n %s addr add 2001:db8:%d::10/64 dev eth0 nodad", name, i)
		run("ip -n %s link set lo up", name)
		run("ip -n %s link set eth0 up", name)
		run("ip -n %s route add default via 172.20.%d.1", name, i)
		run("ip -n %s -6 route add default via 2001:db8:%d::1", name, i)
		run("ip -n %s addr add 100.96.%d.5/32 dev lo", name, i)
		run("ip -n %s addr add fd00:96:%d::5/128 dev lo nodad", name, i)
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

// ask sends a datagram of this size. It returns nil if the datagram arrives.
func ask(t *testing.T, from, to string, size int) error {
	t.Helper()
	return askOver(t, conf.IPv4, from, to, size)
}

// tried calls f once. If the parameter must is true, tried calls f again until f returns nil, for up to ten seconds: a
// new link may drop the first packets, and a busy machine may deliver packets late.
func tried(must bool, f func() error) error {
	err := f()
	for end := time.Now().Add(10 * time.Second); must && err != nil && time.Now().Before(end); {
		err = f()
	}
	return err
}

func pod(f conf.Family, node string) netip.AddrPort {
	return netip.MustParseAddrPort(
		map[conf.Family]string{conf.IPv4: "100.96." + node[1:] + ".5:9", conf.IPv6: "[fd00:96:" + node[1:] + "::5]:9"}[f])
}

func askOver(t *testing.T, f conf.Family, from, to string, size int) error {
	t.Helper()
	var result error
	nodetest.In(t, "/run/netns/"+to, func() error {
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(pod(f, to)))
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		sent := make([]byte, size)
		binary.BigEndian.PutUint64(sent, rand.Uint64()) // a late datagram of an earlier call has another number
		nodetest.In(t, "/run/netns/"+from, func() error {
			result = send(f, from, to, sent)
			return nil
		})
		if result != nil {
			return nil
		}
		if result = server.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); result != nil {
			return nil
		}
		for came := make([]byte, 2000); ; {
			k, addr, err := server.ReadFromUDPAddrPort(came)
			switch {
			case err == nil && !bytes.Equal(came[:k], sent):
				continue
			case err == nil && addr.Addr() != pod(f, from).Addr():
				err = fmt.Errorf("it came from %s", addr)
			}
			result = err
			return nil
		}
	})
	return result
}

func send(f conf.Family, from, to string, data []byte) error {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod(f, from).Addr(), 0)),
		net.UDPAddrFromAddrPort(pod(f, to)))
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
		if f == conf.IPv6 {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	})
	if err == nil {
		err = optErr
	}
	if err != nil {
		return err
	}
	_, err = conn.Write(data)
	return err
}

func TestOverlayBetweenSubnets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	nodes := []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24"),
		node("n3", "172.20.3.10", "100.96.3.0/24"),
	}
	apply := func() {
		t.Helper()
		for name, o := range overlays {
			for range 2 { // the second time there is nothing to do
				if err := applied(o, planned(name, Always, nodes, o)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
	}
	reach := func(from, to string, want bool) {
		t.Helper()
		if err := tried(want, func() error { return ask(t, from, to, 100) }); (err == nil) != want {
			t.Errorf("%s to %s: %v, want %v", from, to, err, want)
		}
	}
	reach("n1", "n2", false)
	apply()
	for _, pair := range []string{"n1 n2", "n2 n1", "n1 n3", "n3 n2"} {
		from, to, _ := strings.Cut(pair, " ")
		reach(from, to, true)
	}
	mtu := planned("n1", Always, nodes, overlays["n1"]).MTU
	if mtu != 1350 {
		t.Errorf("MTU %d; want 1350 of 1400", mtu)
	}
	const headers = 20 + 8 // the headers of IPv4 and UDP
	if err := tried(true, func() error { return ask(t, "n1", "n2", mtu-headers) }); err != nil {
		t.Errorf("a full-size packet doesn't pass: %v", err)
	}
	if err := ask(t, "n1", "n2", mtu-headers+1); err == nil {
		t.Error("a packet larger than the MTU passed unfragmented")
	}

	nodetest.Run(t, "ip", "-n", "n2", "addr", "del", "172.20.2.10/24", "dev", "eth0")
	nodetest.Run(t, "ip", "-n", "n2", "addr", "add", "172.20.2.20/24", "dev", "eth0")
	nodetest.Run(t, "ip", "-n", "n2", "route", "replace", "default", "via", "172.20.2.1")
	nodes[1] = node("n2", "172.20.2.20", "100.96.2.0/24")
	apply()
	reach("n1", "n2", true)
	reach("n2", "n3", true)

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
	out := nodetest.Run(t, "bridge", "-n", "n1", "fdb", "show", "dev", "weir-vxlan")
	if strings.Contains(out, "172.20.3.10") || strings.Contains(out, "172.20.2.10") {
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

// TestWhatTheKernelRefuses: if a link of this node has an address in another node's pod network, the kernel refuses
// weir's route to this network. All other nodes are still reached.
func TestWhatTheKernelRefuses(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	nodetest.Run(t, "ip", "-n", "n1", "addr", "add", "10.5.0.1/24", "dev", "eth0")
	nodes := []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24"),
		node("n3", "172.20.3.10", "10.5.0.0/24"),
	}
	for name, o := range overlays {
		for range 2 {
			all, err := o.Apply(planned(name, Always, nodes, o))
			if err != nil || name == "n1" && (len(all.Refused) != 1 || all.Refused[0].Object != "Node n3") {
				t.Fatalf("%s: refused %v, %v", name, all.Refused, err)
			}
		}
	}
	if err := tried(true, func() error { return ask(t, "n1", "n2", 100) }); err != nil {
		t.Errorf("n1 doesn't reach n2: %v", err)
	}
	out := nodetest.Run(t, "ip", "-n", "n1", "route", "show", "10.5.0.0/24")
	if !strings.Contains(out, "dev eth0 proto kernel") {
		t.Errorf("the route of the node's own link: %s", out)
	}
}

// TestMissingModule: if the kernel can't load the module vxlan, the error says so. The test changes the message to the
// kernel, so that the message asks for a kind of link that doesn't exist.
func TestMissingModule(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o := zones(t)["n1"]
	nodes := []policy.Node{node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24")}
	plan := planned("n1", Always, nodes, o)
	nodetest.EditNetlink(t, true, func(message []byte) unix.Errno {
		copy(message, bytes.ReplaceAll(message, []byte("\x01\x00vxlan"), []byte("\x01\x00vxlxn")))
		return 0
	})
	if _, err := o.Apply(plan); err == nil || !strings.Contains(err.Error(), "modprobe vxlan") {
		t.Errorf("the error is %v", err)
	}
}

// TestOverlayOfBothFamilies: whichever family the tunnels have, packets of both families go through them.
func TestOverlayOfBothFamilies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	for _, under := range []struct {
		addresses string // the addresses of node nI (see zones)
		mtu       int
	}{
		{"172.20.I.10 2001:db8:I::10", 1350},
		{"2001:db8:I::10 172.20.I.10", 1330},
		{"172.20.I.10", 1350},
		{"2001:db8:I::10", 1330},
	} {
		var nodes []policy.Node
		for _, i := range []string{"1", "2", "3"} {
			nodes = append(nodes,
				node("n"+i, strings.ReplaceAll(under.addresses, "I", i), "100.96."+i+".0/24", "fd00:96:"+i+"::/64"))
		}
		for _, nodes := range [][]policy.Node{nodes, nodes[:2]} {
			for name, o := range overlays {
				for range 2 { // the second time there is nothing to do
					if err := applied(o, planned(name, Always, nodes, o)); err != nil {
						t.Fatalf("over %s, %s: %v", under.addresses, name, err)
					}
				}
			}
			for _, f := range conf.Families {
				for _, pair := range []string{"n1 n2", "n2 n1", "n1 n3", "n3 n2"} {
					from, to, _ := strings.Cut(pair, " ")
					want := len(nodes) == 3 || !strings.Contains(pair, "n3")
					err := tried(want, func() error { return askOver(t, f, from, to, 100) })
					if (err == nil) != want {
						t.Errorf("%s over %s, %s to %s: %v, want %v", f, under.addresses, from, to, err, want)
					}
				}
				headers := map[conf.Family]int{conf.IPv4: 20 + 8, conf.IPv6: 40 + 8}[f]
				for more, want := range []bool{true, false} {
					err := tried(want, func() error { return askOver(t, f, "n1", "n2", under.mtu-headers+more) })
					if (err == nil) != want {
						t.Errorf("%s over %s: a packet of %d bytes: %v", f, under.addresses, under.mtu+more, err)
					}
				}
			}
			if mtu := planned("n1", Always, nodes, overlays["n1"]).MTU; mtu != under.mtu {
				t.Errorf("over %s: MTU %d; want %d", under.addresses, mtu, under.mtu)
			}
		}
		for _, list := range []string{"-6 route", "-6 neigh"} {
			out := nodetest.Run(t, "ip", append([]string{"-n", "n1"}, strings.Fields(list)...)...)
			if strings.Contains(out, "fd00:96:3:") ||
				strings.Count(out, "dev "+conf.Tunnel) != map[string]int{"-6 route": 2, "-6 neigh": 1}[list] {
				t.Errorf("over %s, after n3 has left: ip %s:\n%s", under.addresses, list, out)
			}
		}
		out := nodetest.Run(t, "ip", "-n", "n1", "-6", "addr", "show", "dev", conf.Tunnel)
		if strings.Contains(out, "fe80:") || strings.Contains(out, "tentative") {
			t.Errorf("addresses of the tunnel:\n%s", out)
		}
	}
	if err := overlays["n1"].Remove(); err != nil {
		t.Fatal(err)
	}
	if out := nodetest.Run(t, "ip", "-n", "n1", "-6", "route"); strings.Contains(out, "fd00:96:2:") {
		t.Errorf("left after Remove: %s", out)
	}
}

// TestDirectRoutesOfBothFamilies: if two nodes are in one subnet, their pods reach each other with each
// encapsulation.
func TestDirectRoutesOfBothFamilies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	overlays := zones(t)
	nodes := []policy.Node{
		node("n1", "172.20.1.10 2001:db8:1::10", "100.96.1.0/24", "fd00:96:1::/64"),
		node("n2", "172.20.2.10 2001:db8:2::10", "100.96.2.0/24", "fd00:96:2::/64"),
	}
	for i, name := range []string{"n1", "n2"} { // each node gets one more link, and both links are in one subnet
		for _, c := range []string{
			"ip link add shared type bridge", "ip link set shared up",
			fmt.Sprintf("ip link add s%d type veth peer name eth1 netns %s", i, name),
			fmt.Sprintf("ip link set s%d master shared up", i),
			fmt.Sprintf("ip -n %s addr add 172.21.0.%d/24 dev eth1", name, i+1),
			fmt.Sprintf("ip -n %s addr add 2001:db8:21::%d/64 dev eth1 nodad", name, i+1),
			"ip -n " + name + " link set eth1 up",
		} {
			if f := strings.Fields(c); i == 0 || f[2] != "add" || f[3] != "shared" {
				nodetest.Run(t, f[0], f[1:]...)
			}
		}
		nodes[i] = node(name, fmt.Sprintf("172.21.0.%d 2001:db8:21::%d", i+1, i+1), nodes[i].PodCIDRs[0].String(),
			nodes[i].PodCIDRs[1].String())
	}
	for _, e := range []Encapsulation{CrossSubnet, Always, Never} {
		for _, nodes := range [][]policy.Node{nodes[:1], nodes} {
			for i := range nodes {
				o := overlays[nodes[i].Name]
				if err := applied(o, planned(nodes[i].Name, e, nodes, o)); err != nil {
					t.Fatalf("%s: %v", e, err)
				}
			}
		}
		for _, f := range conf.Families {
			// A link may need a second to become ready for IPv6.
			if err := tried(true, func() error { return askOver(t, f, "n1", "n2", 100) }); err != nil {
				t.Errorf("%s, %s: %v", e, f, err)
			}
		}
		out := nodetest.Run(t, "ip", "-n", "n1", "-6", "route", "show", "proto", "88")
		if e != Always && !strings.Contains(out, "via 2001:db8:21::2 dev eth1") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: routes:\n%s", e, out)
		}
	}
}
