package overlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/claims"
	"github.com/weir-net/weir/test/nodetest"
)

const newAddrIPv6 = "RTM_NEWADDR of IPv6"

// monitor returns a function. Each call of this function returns the types of the kernel's messages about the tunnel
// and about weir's routes since the last call.
func monitor(t *testing.T, netns string) func() []string {
	t.Helper()
	var s *nl.NetlinkSocket
	nodetest.In(t, netns, func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
			unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		if err == nil {
			err = s.SetReceiveTimeout(&unix.Timeval{Sec: 10})
		}
		return err
	})
	t.Cleanup(s.Close)
	concerns := func(m syscall.NetlinkMessage, tunnel int) bool {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			return m.Data[5] == conf.RouteProtocol // the field rtm_protocol
		case unix.RTM_NEWNEIGH:
			if m.Data[8]&unix.NUD_PERMANENT == 0 { // the field ndm_state; entries that aren't permanent are the kernel's
				return false
			}
		case unix.RTM_DELNEIGH:
			if m.Data[0] != unix.AF_BRIDGE && m.Data[8] == unix.NUD_NOARP { // the kernel's entry for a multicast address
				return false
			}
		}
		return int(binary.NativeEndian.Uint32(m.Data[4:])) == tunnel // the field ifi_index, ifa_index or ndm_ifindex
	}
	names := map[uint16]string{
		unix.RTM_NEWLINK: "RTM_NEWLINK", unix.RTM_DELLINK: "RTM_DELLINK", unix.RTM_NEWADDR: "RTM_NEWADDR",
		unix.RTM_DELADDR: "RTM_DELADDR", unix.RTM_NEWNEIGH: "RTM_NEWNEIGH", unix.RTM_DELNEIGH: "RTM_DELNEIGH",
		unix.RTM_NEWROUTE: "RTM_NEWROUTE", unix.RTM_DELROUTE: "RTM_DELROUTE",
	}
	return func() (heard []string) {
		t.Helper()
		tunnel, err := strconv.Atoi(strings.TrimSpace(nodetest.Run(t, "ip", "netns", "exec", "n2", "cat",
			"/sys/class/net/weir-vxlan/ifindex")))
		if err != nil {
			t.Fatal(err)
		}
		nodetest.Run(t, "ip", "-n", strings.TrimPrefix(netns, "/run/netns/"), "route", "add", "203.0.113.77", "dev", "lo")
		nodetest.Run(t, "ip", "-n", strings.TrimPrefix(netns, "/run/netns/"), "route", "del", "203.0.113.77", "dev", "lo")
		for {
			msgs, _, err := s.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs {
				own := strings.Contains(string(m.Data), string(netip.MustParseAddr("203.0.113.77").AsSlice()))
				switch {
				case own && m.Header.Type == unix.RTM_DELROUTE:
					return heard
				case !own && concerns(m, tunnel) && m.Header.Type == unix.RTM_NEWADDR && m.Data[0] == unix.AF_INET6:
					heard = append(heard, newAddrIPv6)
				case !own && concerns(m, tunnel):
					heard = append(heard, names[m.Header.Type])
				}
			}
		}
	}
}

// TestNothingToDo: if the kernel has the whole plan, Apply writes nothing. If the kernel lacks one part of the plan,
// Apply names this part. It writes only this part, unless the kernel has lost further parts with it. If the kernel has
// an entry or route of weir's that isn't in the plan, Apply deletes it.
func TestNothingToDo(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o := zones(t)["n2"]
	const n2 = "/run/netns/n2"
	nodes := []policy.Node{
		node("n1", "172.20.1.10 2001:db8:1::10", "100.96.1.0/24", "fd00:96:1::/64"),
		node("n2", "172.20.2.10 2001:db8:2::10", "100.96.2.0/24", "fd00:96:2::/64"),
		node("n3", "172.20.3.10 2001:db8:3::10", "100.96.3.0/24", "fd00:96:3::/64"),
		node("near", "172.20.2.11 2001:db8:2::11", "100.96.4.0/24", "fd00:96:4::/64"),
	}
	apply := func(p Plan, o *Overlay) []Lack {
		t.Helper()
		var all Applied
		nodetest.In(t, n2, func() (err error) { // in n2, Apply reads the sysctls of n2
			all, err = o.Apply(p)
			return err
		})
		if len(all.Refused) > 0 {
			t.Fatal(all.Refused)
		}
		return all.Lacks
	}
	for _, e := range []Encapsulation{CrossSubnet, Always} {
		heard := monitor(t, n2)
		if apply(planned("n2", e, nodes, o), o); e == CrossSubnet { // CrossSubnet is first, so Apply makes the tunnel
			reported(t, heard, newAddrIPv6)
		}
		heard()
		for range 2 {
			if lacks := apply(planned("n2", e, nodes, New(o.h)), New(o.h)); len(lacks) > 0 {
				t.Errorf("%s: once more: it lacked %v", e, lacks)
			}
		}
		if got := heard(); len(got) > 0 {
			t.Errorf("%s: once more: %v", e, got)
		}
	}
	plan := planned("n2", CrossSubnet, nodes, o)
	apply(plan, o)
	const mac = "0e:58:ac:14:01:0a"
	for _, tc := range []struct {
		name, damage string // a command of ip or bridge
		want         string // part of the first lack's text
		// writes has the types of the netlink messages that Apply causes. If writes is "*", the messages may have any types,
		// and Apply may return further lacks.
		writes string
	}{
		{"down", "ip link set weir-vxlan down", "weir-vxlan is down", "*"},
		{"MTU", "ip link set weir-vxlan mtu 1280", "has MTU 1280, not 1350", "RTM_NEWLINK"},
		{"address", "ip addr del 100.96.2.0/32 dev weir-vxlan", "lacks the address 100.96.2.0", "*"},
		{"neighbour", "ip neigh del 100.96.1.0 dev weir-vxlan", "neighbour 100.96.1.0", "RTM_NEWNEIGH"},
		{
			"another's MAC", "ip neigh replace 100.96.1.0 lladdr 02:00:00:00:00:01 dev weir-vxlan nud permanent",
			"neighbour 100.96.1.0", "RTM_DELNEIGH RTM_NEWNEIGH",
		},
		{
			"not permanent", "ip neigh replace 100.96.1.0 lladdr " + mac + " dev weir-vxlan nud stale", "neighbour 100.96.1.0",
			"RTM_DELNEIGH RTM_NEWNEIGH",
		},
		{"forwarding entry", "bridge fdb del " + mac + " dev weir-vxlan dst 172.20.1.10 self", "for node n1", "RTM_NEWNEIGH"},
		{"route", "ip route del 100.96.1.0/24", "the route to 100.96.1.0/24 (node n1)", "RTM_NEWROUTE"},
		{"IPv6 route", "ip -6 route del fd00:96:1::/64", "the route to fd00:96:1::/64 (node n1)", "RTM_NEWROUTE"},
		{
			"route elsewhere", "ip route replace 100.96.1.0/24 via 172.20.2.1 proto 88", "the route to 100.96.1.0/24 (node n1)",
			"RTM_NEWROUTE",
		},
		{"direct route", "ip route del 100.96.4.0/24", "the route to 100.96.4.0/24 (node near)", "RTM_NEWROUTE"},
		{
			"direct route elsewhere", "ip route replace 100.96.4.0/24 via 172.20.2.1 proto 88",
			"the route to 100.96.4.0/24 (node near)", "RTM_NEWROUTE",
		},
		{
			"direct route by another link", "ip route replace 100.96.4.0/24 via 172.20.2.11 dev weir-vxlan onlink proto 88",
			"the route to 100.96.4.0/24 (node near)", "RTM_NEWROUTE",
		},
	} {
		f := strings.Fields(tc.damage)
		nodetest.Run(t, f[0], append([]string{"-n", "n2"}, f[1:]...)...)
		if tc.name == "down" { // the kernel then also removes the entries and routes of IPv6
			heard := monitor(t, n2)
			apply(plan, o)
			reported(t, heard, newAddrIPv6)
			continue
		}
		heard := monitor(t, n2)
		lacks := apply(plan, o)
		if len(lacks) == 0 || !strings.Contains(lacks[0].Was, tc.want) || lacks[0].Command == "" ||
			len(lacks) > 1 && tc.writes != "*" {
			t.Errorf("%s: it lacked %v; want one with %q", tc.name, lacks, tc.want)
		}
		if got := strings.Join(heard(), " "); got != tc.writes && tc.writes != "*" {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.writes)
		}
		if lacks := apply(plan, o); len(lacks) > 0 {
			t.Errorf("%s: repaired, and it lacked %v", tc.name, lacks)
		}
	}
	for _, stranger := range []string{
		"ip route add 100.96.9.0/24 via 172.20.2.1 proto 88", "ip route add 100.96.1.0/24 via 172.20.2.1 metric 7 proto 88",
		"ip neigh add 100.96.9.0 lladdr 02:00:00:00:00:01 dev weir-vxlan nud permanent",
		"bridge fdb add 02:00:00:00:00:01 dev weir-vxlan dst 172.20.9.9 self permanent",
	} {
		f := strings.Fields(stranger)
		nodetest.Run(t, f[0], append([]string{"-n", "n2"}, f[1:]...)...)
		heard := monitor(t, n2)
		if lacks := apply(plan, o); len(lacks) > 0 {
			t.Errorf("%s: it lacked %v", stranger, lacks)
		}
		if got := heard(); len(got) != 1 || !strings.HasPrefix(got[0], "RTM_DEL") {
			t.Errorf("%s: %v, want it deleted", stranger, got)
		}
	}
	nodetest.Run(t, "ip", "-n", "n2", "link", "del", "weir-vxlan")
	if lacks := apply(plan, o); len(lacks) != 1 || lacks[0].Was != "weir-vxlan isn't there" {
		t.Errorf("without the device it lacked %v", lacks)
	}
}

// reported waits until the kernel has sent a message of the type. The kernel reports a new IPv6 address when one of its
// workers has put the address into use, which may be after the request has been answered.
func reported(t *testing.T, heard func() []string, message string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !slices.Contains(heard(), message); {
		if time.Now().After(deadline) {
			t.Fatalf("the kernel hasn't sent %s", message)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// BenchmarkNothingToDo measures an Apply with nothing to do, for 5,000 nodes of both families.
func BenchmarkNothingToDo(b *testing.B) {
	runtime.LockOSThread() // the thread ends with the benchmark, and the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	o := New(h)
	for _, line := range []string{
		"ip link set lo up", "ip link add eth0 type veth peer name eth1", "ip link set eth0 up", "ip link set eth1 up",
		"ip addr add 172.16.0.1/16 dev eth0",
	} {
		f := strings.Fields(line)
		nodetest.Run(b, f[0], f[1:]...)
	}
	var nodes []policy.Node
	for i := range 5000 {
		nodes = append(nodes, node(fmt.Sprint("n", i), fmt.Sprintf("172.16.%d.%d", i/200, 1+i%200),
			fmt.Sprintf("10.%d.%d.0/24", 100+i/250, i%250), fmt.Sprintf("fd00:%x::/64", 0x1000+i)))
	}
	began := time.Now()
	settled, _ := claims.Settle(nodes, claims.Terms{Self: "n0"})
	plan := Compute("n0", options(Always), settled, paths{netip.MustParsePrefix("172.16.0.0/16")})
	b.Logf("plan in %s", time.Since(began))
	if all, err := o.Apply(plan); err != nil || len(all.Refused) > 0 {
		b.Fatal(all.Refused, err)
	}
	for b.Loop() {
		all, err := o.Apply(plan)
		if err != nil || len(all.Lacks)+len(all.Refused) > 0 {
			b.Fatal(len(all.Lacks), all.Refused, err)
		}
	}
}
