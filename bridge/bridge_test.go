package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/nft"
	"github.com/weir-net/weir/test/nodetest"
)

func address(list string) []endpoint.Address {
	var all []endpoint.Address
	for _, s := range strings.Fields(list) {
		a := endpoint.Address{
			Addr:    netip.MustParseAddr(s),
			Subnet:  netip.MustParsePrefix("10.88.0.0/24"),
			Gateway: netip.MustParseAddr("10.88.0.1"),
		}
		if a.Addr.Is6() {
			a.Subnet, a.Gateway = netip.MustParsePrefix("fd00:10:88::/64"), netip.MustParseAddr("fd00:10:88::1")
		}
		all = append(all, a)
	}
	return all
}

type node struct {
	*testing.T
	h netlinksafe.Handle
	b *Bridge
}

func newNode(t *testing.T) node { return newNodeFor(t, "10.88.0.2") }

func newNodeFor(t *testing.T, addrs string) node {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Ensure(0, Gateways(address(addrs)))
	if err != nil {
		t.Fatal(err)
	}
	return node{t, h, b}
}

// pod makes a network namespace with a port of weir0, and sets the port's link up. The guard doesn't let the port send
// yet.
func (n node) pod(name, addr string) Port {
	n.Helper()
	path := nodetest.NewNS(n, name)
	ns, err := netns.GetFromPath(path)
	if err != nil {
		n.Fatal(err)
	}
	p := Port{
		HostIf: PortName(name), IfName: "eth0", Netns: ns, MAC: PodMAC(address(addr)),
		Addresses: address(addr), Alias: "test/" + name,
	}
	pair, err := n.b.AddPort(p)
	if err != nil {
		n.Fatal(err)
	}
	if err := pair.Start(); err != nil {
		n.Fatal(err)
	}
	return p
}

func TestPodsReachEachOtherThroughTheNode(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for name, addr := range map[string]string{"a": "10.88.0.2", "b": "10.88.0.3"} {
		p := n.pod(name, addr)
		if err := AllowSender(p.Sender()); err != nil {
			t.Fatal(err)
		}
		if ok, err := SenderAllowed(p.Sender()); !ok || err != nil {
			t.Fatalf("Allowed after Allow: %v, %v", ok, err)
		}
	}
	nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.3")
	nodetest.Run(t, "iptables", "-A", "FORWARD", "-j", "DROP")
	if out, err := runIn("a", "ping", "-c1", "-W1", "10.88.0.3"); err == nil {
		t.Fatalf("pods meet beside the FORWARD hook:\n%s", out)
	}
	nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.1")
}

// TestTranslatedPacketsReachPodsOfTheSameNode: if a DNAT rule like those of kube-proxy leads a pod's packet to a pod of
// the same node, the packet arrives.
func TestTranslatedPacketsReachPodsOfTheSameNode(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for name, addr := range map[string]string{"a": "10.88.0.2", "b": "10.88.0.3"} {
		if err := AllowSender(n.pod(name, addr).Sender()); err != nil {
			t.Fatal(err)
		}
	}
	nodetest.Run(t, "iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.99.0.1", "-j", "DNAT", "--to-destination",
		"10.88.0.3")
	nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.99.0.1")
}

func TestGuardIsThereBeforeTheFirstEntry(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	if _, _, err := RepairGuard(func() ([]Sender, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	p := n.pod("a", "10.88.0.2")
	if out, err := runIn("a", "ping", "-c1", "-W1", "10.88.0.1"); err == nil {
		t.Fatalf("a port that the guard doesn't know got through:\n%s", out)
	}
	if err := AllowSender(p.Sender()); err != nil {
		t.Fatal(err)
	}
	nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.1")
	leftover := Sender{PortName("gone"), p.MAC, p.Addresses}
	if err := AllowSender(leftover); err != nil {
		t.Fatal(err)
	}
	if _, _, err := RepairGuard(func() ([]Sender, error) { return []Sender{p.Sender()}, nil }); err != nil {
		t.Fatal(err)
	}
	if ok, err := SenderAllowed(leftover); ok || err != nil {
		t.Errorf("a leftover stays in the guard: %v, %v", ok, err)
	}
	nodetest.Run(t, "ip", "netns", "exec", "a", "ping", "-c1", "-w60", "-i0.05", "10.88.0.1")
	for range 2 { // the second call must return nil, although the guard has no entry left
		if err := ForbidSender(p.Sender()); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := runIn("a", "ping", "-c1", "-W1", "10.88.0.1"); err == nil {
		t.Fatalf("a forbidden port got through:\n%s", out)
	}
}

// TestTheGuardIsRepaired: if a part of the guard is removed, RepairGuard restores the part. If the records can't be
// read, RepairGuard restores only the rules. AllowSender replaces the guard of an earlier version of weir.
func TestTheGuardIsRepaired(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	p := Sender{PortName("a"), MAC(netip.MustParseAddr("10.88.0.2")), address("10.88.0.2")}
	rules := func() string {
		lines := strings.Split(nodetest.Run(t, "nft", "-s", "list", "ruleset"), "\n")
		slices.Sort(lines) // sorted, because the kernel lists chains and sets in the order in which they were made
		return strings.Join(lines, "\n")
	}
	if err := AllowSender(p); err != nil {
		t.Fatal(err)
	}
	whole := rules()
	for _, c := range []string{
		"nft delete table inet weir-ports", "nft delete table arp weir-ports", "nft flush chain inet weir-ports prerouting",
		"nft flush chain arp weir-ports input", "nft flush chain bridge weir fragments", "nft flush chain bridge weir shared",
		"nft flush chain bridge weir ports", "nft delete table bridge weir", "nft flush ruleset",
	} {
		nodetest.Run(t, "sh", "-c", c)
		if _, _, err := RepairGuard(func() ([]Sender, error) { return []Sender{p}, nil }); err != nil {
			t.Fatalf("after %s: %v", c, err)
		}
		if got := rules(); got != whole {
			t.Errorf("after %s:\n%s\nwant\n%s", c, got, whole)
		}
	}
	if err := ForbidSender(p); err != nil {
		t.Fatal(err)
	}
	closed := rules()
	nodetest.Run(t, "nft", "flush", "ruleset")
	unknown := errors.New("the records can't be read")
	if _, _, err := RepairGuard(func() ([]Sender, error) { return nil, unknown }); !errors.Is(err, unknown) {
		t.Errorf("without knowing who may send: %v", err)
	}
	if got := rules(); got != closed {
		t.Errorf("without knowing who may send:\n%s\nwant\n%s", got, closed)
	}
	nodetest.Run(t, "nft", "flush", "ruleset")
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	sets := map[string]*nftables.Set{
		guardSets[conf.IPv4]: sendersSet(conf.IPv4),
		guardSets[conf.IPv6]: sendersSet(conf.IPv6),
	}
	conn.AddTable(bridgeTable())
	for _, s := range sets {
		if err := conn.AddSet(s, nil); err != nil {
			t.Fatal(err)
		}
	}
	ports := guardChains(guardSetsByName())[2]
	ports.Rules = slices.Delete(portRules(guardSetsByName()), 2, 6)[1:]
	// The guards of earlier versions of weir had no rules that log.
	ports.Rules = slices.Delete(ports.Rules, len(ports.Rules)-2, len(ports.Rules)-1)
	ports = withoutLog([]nft.Chain{ports})[0]
	for i, r := range ports.Rules {
		if v, ok := r.Exprs[len(r.Exprs)-1].(*expr.Verdict); ok && v.Chain == discoveryChain {
			ports.Rules[i] = rule(r.Comment, r.Exprs[:len(r.Exprs)-1], nft.Drop())
		}
	}
	nft.AddChains(conn, []nft.Chain{ports})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := AllowSender(p); err != nil {
		t.Fatal(err)
	}
	if got := rules(); got != whole {
		t.Errorf("over an earlier weir's guard:\n%s\nwant\n%s", got, whole)
	}
}

// TestGuardThatCannotLog: if a kernel can't log frames of a bridge, logIfPossible makes the guard without rules that
// log, and guardIntact returns true for this guard. With an added rule that accepts frames, guardIntact returns false.
func TestGuardThatCannotLog(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	tries := 0
	err := logIfPossible(func(conn *nftables.Conn, logs bool) error {
		if tries++; logs {
			return errors.New("the kernel can't log")
		}
		return commitGuard(conn, nil, true, logs)
	})
	if err != nil || tries != 2 {
		t.Fatalf("%d tries, %v", tries, err)
	}
	intact := func() bool {
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		intact, err := guardIntact(conn)
		if err != nil {
			t.Fatal(err)
		}
		return intact
	}
	if !intact() {
		t.Error("the guard without a log isn't intact")
	}
	nodetest.RunEach(t, "nft add rule bridge weir forged accept")
	if intact() {
		t.Error("a guard that accepts forged frames is intact")
	}
}

func TestReassembly(t *testing.T) {
	const gib = 1 << 30
	for node, want := range map[uint64]int64{gib: gib / 8, 4 * gib: gib / 2, 64 * gib: gib / 2} {
		for _, b := range reassembly(node) {
			s := b.(sysctl)
			holds := func(have int64) bool { return s.satisfiedBy(strconv.FormatInt(have, 10)) }
			if s.Bound == atLeast &&
				(s.Value != strconv.FormatInt(want, 10) || holds(want-1) || !holds(want) || !holds(want+1)) {
				t.Errorf("with %d bytes: %v", node, b)
			}
			if s.Bound == atMost && (s.Value != "2" || holds(3) || !holds(2) || !holds(1)) {
				t.Errorf("a bound on time: %v", b)
			}
		}
	}
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "sh", "-c", "echo 9999999999 >/proc/sys/net/ipv4/ipfrag_high_thresh") // SetReassembly must keep it
	if err := SetReassembly(); err != nil {
		t.Fatal(err)
	}
	got := nodetest.Run(t, "sh", "-c",
		"cd /proc/sys/net; cat ipv4/ipfrag_high_thresh ipv4/ipfrag_time ipv6/ip6frag_time "+
			"netfilter/nf_conntrack_frag6_timeout")
	if got != "9999999999\n2\n2\n2\n" {
		t.Errorf("the settings are %q", got)
	}
}

func TestAddLeavesNothingBehindWhenItFails(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	first := n.pod("a", "10.88.0.2")
	neighbours := func() string { return nodetest.Run(t, "ip", "neigh", "show", "dev", Name, "nud", "permanent") }
	before := neighbours()
	second := first
	second.HostIf, second.Addresses = PortName("other"), address("10.88.0.3")
	if _, err := n.b.AddPort(second); !errors.Is(err, ErrInterfaceExists) {
		t.Fatalf("second eth0 in one pod: %v, want ErrInterfaceExists", err)
	}
	if _, err := n.h.LinkByName(second.HostIf); err == nil {
		t.Errorf("%s was left behind", second.HostIf)
	}
	third := first
	third.HostIf, third.IfName, third.Addresses = PortName("third"), "eth1", address("10.88.0.4")
	if _, err := n.b.AddPort(third); err == nil {
		t.Fatal("a second route to the gateway was added without an error")
	}
	if _, err := n.h.LinkByName(third.HostIf); err == nil {
		t.Errorf("%s was left behind", third.HostIf)
	}
	if after := neighbours(); after != before {
		t.Errorf("neighbours:\n%s\nand before\n%s", after, before)
	}
	for range 2 {
		if err := RemovePort(first.HostIf, first.Addresses); err != nil {
			t.Fatal(err)
		}
	}
	if out := neighbours(); out != "" {
		t.Errorf("neighbours left: %s", out)
	}
}

func TestEnsureRefusesAStrangersLink(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "ip", "link", "add", Name, "type", "ifb")
	if _, err := Ensure(0, Gateways(address("10.88.0.2"))); err == nil {
		t.Fatal("an ifb named weir0 was taken for the bridge")
	}
}

// TestEnsureGoesOn: if an ADD was killed just after it had made the link, Ensure completes the bridge.
func TestEnsureGoesOn(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "sh", "-c",
		"ip link add weir0 type bridge; echo 0 >/proc/sys/net/ipv4/ip_forward; "+
			"echo 1 >/proc/sys/net/ipv4/conf/weir0/send_redirects")
	newNode(t)
	got := nodetest.Run(t, "sh", "-c", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/weir0/send_redirects")
	if got != "1\n0\n" {
		t.Errorf("ip_forward and weir0's send_redirects are %q, want 1 and 0", got)
	}
}

// TestShutPeer: ShutPeer and PeerExists find a link by its index. If the link has another name than the given name, the
// link must lead to one of the given addresses. Without an index, both find the link by its name, and ShutPeer sets the
// link down only if it leads to the given namespace.
func TestShutPeer(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	one, other := nodetest.NewNS(t, "one"), nodetest.NewNS(t, "other")
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nodetest.NewNS(t, "renamed")
	addrs := map[string]string{"one": "192.0.2.1", "other": "192.0.2.2", "renamed": "192.0.2.3"}
	for _, name := range []string{"one", "other", "renamed"} {
		nodetest.RunEach(t, "ip link add v"+name+" type veth peer name eth0 netns "+name, "ip link set v"+name+" up",
			"ip -n "+name+" address add "+addrs[name]+"/32 dev eth0")
	}
	nodetest.RunEach(t, "ip link add here type veth peer name there", "ip link set here up")
	up := func(name string) bool { return strings.Contains(nodetest.Run(t, "ip", "link", "show", name), ",UP") }
	index := func(name string) int {
		link, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return link.Index
	}
	for _, c := range []struct {
		link       string // the link's name now
		name       string // the recorded name
		index      int
		netns, pod string
		exists, up bool
	}{
		{"vother", "vother", 0, one, "one", true, true}, // the link is gone, and another pod's link has its name by now
		{"here", "here", 0, other, "other", true, true},
		{"vone", "vone", 0, one + "-gone", "one", true, true},
		{"vone", "vone", 0, file, "one", true, true},
		{"vone", "missing", 0, one, "one", false, true},
		{"vone", "missing", 1, one, "one", false, true},
		{"vone", "vone", 0, one, "one", true, false},
		{"vrenamed", "was", index("vrenamed"), one, "other", false, true}, // another pod's link has the index by now
		{"vrenamed", "was", index("vrenamed"), one, "renamed", true, false},
		{"vother", "vother", index("vother"), one + "-gone", "other", true, false}, // the agent can't see the namespace
	} {
		has := []endpoint.Address{{Addr: netip.MustParseAddr(addrs[c.pod])}}
		exists, err := PeerExists(c.name, c.index, has)
		if err = errors.Join(err, ShutPeer(c.name, c.index, c.netns, has)); err != nil {
			t.Fatal(err)
		}
		if exists != c.exists || up(c.link) != c.up {
			t.Errorf("%s of %s: exists: %v, want %v; up: %v, want %v", c.name, c.netns, exists, c.exists, !c.up, c.up)
		}
	}
}

// TestPortExists: PortExists finds links, even a link without IPv4, and allocates little memory. The agent calls
// PortExists for each pod again and again.
func TestPortExists(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "ip", "link", "add", "weirp0", "type", "veth", "peer", "name", "weirp1")
	nodetest.Run(t, "ip", "link", "set", "lo", "mtu", "60") // too small for IPv4
	if _, err := os.Stat("/proc/sys/net/ipv4/conf/lo"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lo has settings of IPv4: %v", err)
	}
	for name, want := range map[string]bool{"weirp0": true, "weirp2": false, "lo": true} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const times = 100
		for range times {
			if exists, err := PortExists(name); exists != want || err != nil {
				t.Fatalf("%s: %v, %v", name, exists, err)
			}
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / times; each > 1000 {
			t.Errorf("%s: an answer makes %d bytes of garbage", name, each)
		}
	}
}

// TestPodAddressesDuringACleanup: PodAddresses skips namespaces that the kernel is deleting. The kernel still lists the
// links that lead to such namespaces.
func TestPodAddressesDuringACleanup(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	addr := netip.MustParseAddr("192.0.2.1")
	nodetest.NewNS(t, "pod")
	nodetest.RunEach(t, "ip link add vpod type veth peer name eth0 netns pod",
		"ip -n pod address add "+addr.String()+"/32 dev eth0")
	for range 10 {
		var gone []string
		for _, name := range []string{"one", "two", "three"} { // the kernel deletes these one after the other
			gone = append(gone, nodetest.NewNS(t, name))
			nodetest.RunEach(t, "ip link add type veth peer name eth0 netns "+name)
		}
		for _, path := range gone {
			nodetest.DelNS(t, path)
		}
		if all, err := PodAddresses(); err != nil || len(all[addr]) == 0 {
			t.Fatalf("%v, %v", all, err)
		}
	}
}

// TestPodAddresses: the addresses of a pod are found by its links, although its network namespace is mounted nowhere,
// as in the agent's container. With each address comes the link that leads to it. The node's own addresses don't count.
func TestPodAddresses(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	path := nodetest.NewNS(t, "pod")
	nodetest.RunEach(t, "ip link add vother type veth peer name eth1 netns pod",
		"ip link add vpod type veth peer name eth0 netns pod", "ip link set vpod up",
		"ip address add 192.0.2.1/32 dev vpod", "ip -n pod link set eth0 up", "ip -n pod address add 192.0.2.2/32 dev eth0",
		"ip -n pod address add 2001:db8::2/128 dev eth0 nodad", "ip -n pod address add 192.0.2.3/32 dev eth1",
		"ip -n pod address add 192.0.2.4/32 dev lo")
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	nodetest.RunEach(t, "umount --lazy "+path)
	all, err := PodAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string][]string{
		"192.0.2.1": nil, "192.0.2.2": {"vpod"}, "2001:db8::2": {"vpod"}, "192.0.2.3": {"vother"},
		"192.0.2.4": {"vother", "vpod"},
	} {
		var links []string
		for _, p := range all[netip.MustParseAddr(addr)] {
			links = append(links, p.Name)
		}
		slices.Sort(links)
		if links = slices.Compact(links); !slices.Equal(links, want) {
			t.Errorf("%s: %v, want %v: %v", addr, links, want, all)
		}
	}
}

// TestFailedWatches: if a watch gets a message that it can't read, it returns an error and closes its socket.
func TestFailedWatches(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for name, watch := range map[string]func() error{
		"ports": func() error { return WatchPorts(t.Context(), func() {}) },
		"node":  func() error { return WatchNode(t.Context(), func(News) {}) },
	} {
		if err := nodetest.FailedWatch(t, unix.NETLINK_ROUTE, watch); err == nil {
			t.Errorf("the watch of the %s has ended without an error", name)
		}
	}
}

// TestNetfilterEnabled: NetfilterEnabled returns true only if the bridge has both nf_call_iptables and
// nf_call_ip6tables.
func TestNetfilterEnabled(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	for _, c := range []struct {
		options string
		on      bool
	}{
		{"nf_call_iptables 0 nf_call_ip6tables 0", false},
		{"nf_call_iptables 1", false},
		{"nf_call_ip6tables 1", true},
		{"nf_call_iptables 0", false},
	} {
		nodetest.RunEach(t, "ip link set br0 type bridge "+c.options)
		if on, err := NetfilterEnabled("br0"); on != c.on || err != nil {
			t.Errorf("after %s: %v, want %v; %v", c.options, on, c.on, err)
		}
	}
	if on, err := NetfilterEnabled("missing"); on || err == nil {
		t.Errorf("a missing bridge: %v, %v", on, err)
	}
}

// TestFindPeerOfANewLink: FindPeer finds the node's end of a link before the node has a number for the pod's namespace.
// The kernel gives a namespace its number when it first describes a link that leads there.
func TestFindPeerOfANewLink(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	path := nodetest.NewNS(t, "pod")
	nodetest.RunEach(t, "ip -n pod link add eth0 type veth peer name vpod netns "+strconv.Itoa(os.Getpid()))
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if id, err := h.GetNetNsIdByFd(int(ns)); id != -1 || err != nil {
		t.Fatalf("the namespace has the number %d already; %v", id, err)
	}
	if peer, err := FindPeer(h, ns, "eth0"); err != nil || peer.Name != "vpod" {
		t.Errorf("%+v, %v", peer, err)
	}
}

// TestOthersRoutesStay: if other links have routes to weir0's subnets, weir adds its routes without replacing theirs,
// and reports the other links' routes that the kernel uses instead of weir's.
func TestOthersRoutesStay(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const list = "{ ip -4 route show table all; ip -6 route show; } | grep '88.*%s' | sed 's/ linkdown//'"
	routes := func(link string) string { return nodetest.Run(t, "sh", "-c", fmt.Sprintf(list, link)) }
	nodetest.RunEach(t, "ip link add cni0 type bridge", "ip link set cni0 up", "ip address add 10.88.0.1/24 dev cni0",
		"ip -6 route add fd00:10:88::/64 dev cni0")
	ofCni0 := routes("cni0")
	n := newNodeFor(t, "10.88.0.2 fd00:10:88::2")
	p := n.pod("a", "10.88.0.2 fd00:10:88::2")
	ofWeir0 := routes(Name)
	if got := routes("cni0"); got != ofCni0 {
		t.Errorf("ADD has changed the routes of cni0:\n%s, which were\n%s", got, ofCni0)
	}
	nodetest.RunEach(t, "ip route del 10.88.0.0/24 dev weir0", "ip -6 route del fd00:10:88::/64 dev weir0",
		"ip route del local 10.88.0.1 dev weir0 table local")
	for _, gw := range Gateways(p.Addresses) {
		for _, r := range routesOf(gw) {
			if err := r.restore(n.h, &Observed{}); err != nil {
				t.Errorf("%s: %v", r, err)
			}
		}
	}
	all := Properties(Knowledge{Pods: []Pod{{p.HostIf, p.MAC, p.Addresses, true}}})
	ahead := slices.DeleteFunc(Repair(n.h, all), func(d Difference) bool { return !errors.Is(d.Failed, errAhead) })
	if len(ahead) != 2 {
		t.Errorf("%v", ahead)
	}
	if got := routes(Name); got != ofWeir0 {
		t.Errorf("weir0 has the routes\n%s, and had\n%s", got, ofWeir0)
	}
	if got := routes("cni0"); got != ofCni0 {
		t.Errorf("the repair has changed the routes of cni0:\n%s, which were\n%s", got, ofCni0)
	}
}
