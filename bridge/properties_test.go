package bridge

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

func dualPod() Pod {
	addrs := []endpoint.Address{
		{
			Addr:    netip.MustParseAddr("10.88.0.2"),
			Subnet:  netip.MustParsePrefix("10.88.0.0/24"),
			Gateway: netip.MustParseAddr("10.88.0.1"),
		},
		{
			Addr:    netip.MustParseAddr("fd00::2"),
			Subnet:  netip.MustParsePrefix("fd00::/64"),
			Gateway: netip.MustParseAddr("fd00::1"),
		},
	}
	return Pod{HostIf: "weirp1", MAC: MAC(addrs[0].Addr), Addresses: addrs, Up: true}
}

func fourOnly(p Pod) Pod {
	p.Addresses = p.Addresses[:1]
	return p
}

func TestProperties(t *testing.T) {
	bridge := "ip link add weir0 type bridge; ip link set weir0 address 0a:58:0a:58:00:01 arp on up type bridge " +
		"mcast_snooping 0 stp_state 0 vlan_filtering 0"
	sysctls4 := []string{
		"sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.conf.weir0.forwarding=1",
		"sysctl -w net.ipv4.conf.all.send_redirects=0", "sysctl -w net.ipv4.conf.weir0.send_redirects=0",
	}
	sysctls6 := []string{
		"sysctl -w net.ipv6.conf.weir0.disable_ipv6=0", "sysctl -w net.ipv6.conf.all.forwarding=1",
		"sysctl -w net.ipv6.conf.UPLINK.accept_ra=2",
	}
	ofBridges := []string{
		"sysctl -w net.bridge.bridge-nf-call-iptables=0",
		"sysctl -w net.bridge.bridge-nf-call-ip6tables=0",
	}
	gateway4 := []string{
		"ip addr replace 10.88.0.1/24 dev weir0", "ip route append 10.88.0.0/24 dev weir0 src 10.88.0.1",
		"ip route append local 10.88.0.1 dev weir0 table local",
	}
	gateway6 := []string{
		"ip addr replace fd00::1/128 dev weir0 nodad", "ip route append fd00::/64 dev weir0",
		"ip route append local fd00::1 dev weir0 table local",
	}
	port := []string{
		"ip link set weirp1 master weir0 up; bridge link set dev weirp1 isolated on learning off flood off mcast_flood " +
			"off bcast_flood off; ip link set weirp1 type bridge_slave group_fwd_mask 0xfffd",
		"bridge fdb replace 0a:58:0a:58:00:02 dev weirp1 master static",
		"ip neigh replace 10.88.0.2 lladdr 0a:58:0a:58:00:02 dev weir0 nud permanent",
	}
	neighbour6 := "ip neigh replace fd00::2 lladdr 0a:58:0a:58:00:02 dev weir0 nud permanent"
	join := func(parts ...any) (all []string) {
		for _, p := range parts {
			switch p := p.(type) {
			case string:
				all = append(all, p)
			case []string:
				all = append(all, p...)
			}
		}
		return all
	}
	always := []string{
		"sysctl -w net.ipv4.ipfrag_time=2", "sysctl -w net.ipv4.ipfrag_high_thresh=1048576",
		"sysctl -w net.ipv6.ip6frag_time=2", "sysctl -w net.ipv6.ip6frag_high_thresh=1048576",
		"sysctl -w net.netfilter.nf_conntrack_frag6_timeout=2",
		"sysctl -w net.netfilter.nf_conntrack_frag6_high_thresh=1048576",
		"ip -6 addr flush dev weir0 scope link", "sysctl -w net.ipv4.conf.all.accept_source_route=0",
		"ip link set weir0 addrgenmode none",
		"sysctl -w net.ipv6.conf.weir0.accept_ra=0",
		"ip link set weir-vxlan addrgenmode none", "sysctl -w net.ipv6.conf.weir-vxlan.accept_ra=0",
	}
	closed := fourOnly(dualPod())
	closed.Up = false
	for _, tc := range []struct {
		name string
		k    Knowledge
		want []string
	}{
		{"no pod", Knowledge{}, nil},
		{"IPv4", Knowledge{Pods: []Pod{fourOnly(dualPod())}}, join(bridge, sysctls4, ofBridges, gateway4, port)},
		{
			"both",
			Knowledge{Pods: []Pod{dualPod()}},
			join(bridge, sysctls4, sysctls6, ofBridges, gateway4, gateway6, port, neighbour6),
		},
		{
			"not enrolled yet",
			Knowledge{Pods: []Pod{closed}},
			join(bridge, sysctls4, ofBridges, gateway4, strings.Replace(port[0], " up;", ";", 1), port[1:]),
		},
		{
			"a MAC that weir0 was seen with",
			Knowledge{Pods: []Pod{fourOnly(dualPod())}, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
			join(strings.Replace(bridge, "0a:58:0a:58:00:01", "02:00:00:00:00:01", 1), sysctls4, ofBridges, gateway4, port),
		},
		{
			"tunnels",
			Knowledge{Pods: []Pod{fourOnly(dualPod())}, Tunnels: []conf.Family{conf.IPv4, conf.IPv6}},
			join(bridge, sysctls4, "sysctl -w net.ipv4.conf.weir-vxlan.forwarding=1", ofBridges, gateway4, port),
		},
		{
			"behind another plugin",
			Knowledge{Filtered: []string{"cni0"}, NoIPv6: []Peer{{Name: "veth1"}}},
			[]string{
				"ip link set cni0 type bridge nf_call_iptables 1 nf_call_ip6tables 1",
				"sysctl -w net.ipv6.conf.veth1.disable_ipv6=1",
			},
		},
	} {
		var got []string
		tc.k.Memory = memoryPart << 20
		for _, p := range Properties(tc.k) {
			got = append(got, p.Command())
			if p.String() == "" || p.Kind() == "" {
				t.Errorf("%s: %s has no words, or no kind", tc.name, p.Command())
			}
		}
		if diff := cmp.Diff(append(slices.Clone(always), tc.want...), got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func whole() *Observed {
	p := dualPod()
	const br, port = 1, 2
	return &Observed{
		Links: map[string]Link{
			Name: {
				Name:   Name,
				Kind:   "bridge",
				Index:  br,
				MTU:    1500,
				MAC:    MAC(p.Addresses[0].Gateway),
				Up:     true,
				Bridge: map[uint16]uint16{nl.IFLA_BR_STP_STATE: 0},
			},
			"weirp1": {
				Name: "weirp1", Kind: "veth", Index: port, Master: br, Peer: 2, PeerNS: 0, MTU: 1500, Up: true, Running: true,
				Port: map[uint16]uint16{
					nl.IFLA_BRPORT_ISOLATED: 1, nl.IFLA_BRPORT_GROUP_FWD_MASK: linkLocalMACs,
					nl.IFLA_BRPORT_STATE: forwardingState,
				},
			},
		},
		Addresses: map[int][]netip.Prefix{br: {netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("fd00::1/128")}},
		Neighbours: map[int]map[netip.Addr]neighbourSeen{br: {
			p.Addresses[0].Addr: {p.MAC.String(), true}, p.Addresses[1].Addr: {p.MAC.String(), true},
		}},
		Forwarding: map[int]map[string]bool{port: {p.MAC.String(): true}},
		Routes: []routeSeen{
			{Link: br, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Dst: netip.MustParsePrefix("10.88.0.0/24")},
			{Link: br, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Dst: netip.MustParsePrefix("10.88.0.1/32")},
			{Link: br, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Dst: netip.MustParsePrefix("fd00::/64")},
			{Link: br, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Dst: netip.MustParsePrefix("fd00::1/128")},
		},
		Sysctl: func(key string) (string, error) {
			for _, p := range Properties(Knowledge{Pods: []Pod{dualPod()}}) {
				if s, ok := p.(sysctl); ok && s.Key == key {
					return s.Value, nil
				}
			}
			if strings.HasSuffix(key, "/addr_gen_mode") {
				return "1", nil
			}
			return "", fs.ErrNotExist
		},
		PodMTU: func(Link) (int, error) { return 1500, nil },
	}
}

func edit(o *Observed, name string, f func(*Link)) {
	l := o.Links[name]
	f(&l)
	o.Links[name] = l
}

// TestLaterRoutes: Compare reports nothing if another program has routes to the same addresses in another table, or
// in the same table behind weir's route.
func TestLaterRoutes(t *testing.T) {
	o := whole()
	dst := netip.MustParsePrefix("10.88.0.0/24")
	o.Routes = append(o.Routes, routeSeen{Link: 9, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Dst: dst})
	o.Routes = append([]routeSeen{
		{Link: 9, Table: 100, Type: unix.RTN_UNICAST, Dst: dst},
		{Link: 9, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Dst: netip.MustParsePrefix("10.88.0.1/32")},
	}, o.Routes...)
	if got := Compare(Properties(Knowledge{Pods: []Pod{dualPod()}}), o); len(got) > 0 {
		t.Errorf("%v", got)
	}
}

// TestNoIPv6OnPeers: Compare reports a pod's link that has IPv6, but should have none. Compare doesn't report a later
// link with the same name, because such a link has another index.
func TestNoIPv6OnPeers(t *testing.T) {
	for _, tc := range []struct {
		value string
		index int // of the pod's link, or 0 if it isn't known
		wrong bool
	}{{"0", 7, true}, {"1", 7, false}, {"0", 8, false}, {"0", 0, true}} {
		o := whole()
		edit(o, "veth1", func(l *Link) { l.Name, l.Index = "veth1", 7 })
		as := o.Sysctl
		o.Sysctl = func(k string) (string, error) {
			if k == "net/ipv6/conf/veth1/disable_ipv6" {
				return tc.value, nil
			}
			return as(k)
		}
		k := Knowledge{Pods: []Pod{dualPod()}, NoIPv6: []Peer{{Name: "veth1", Index: tc.index}, {Name: "gone", Index: 9}}}
		if got := Compare(Properties(k), o); len(got) > 0 != tc.wrong {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestCompare: if one thing is wrong or unknown, Compare names this thing and nothing else.
func TestCompare(t *testing.T) {
	broken := errors.New("the kernel is busy")
	for _, tc := range []struct {
		name    string
		change  func(*Observed)
		want    string // part of the text of the only difference; empty if there must be no difference
		unknown bool
	}{
		{"nothing", func(*Observed) {}, "", false},
		{"sysctl", func(o *Observed) {
			as := o.Sysctl
			o.Sysctl = func(k string) (string, error) {
				if k == "net/ipv4/ip_forward" {
					return "0", nil
				}
				return as(k)
			}
		}, "net.ipv4.ip_forward is 0", false},
		{"without br_netfilter", func(o *Observed) {
			as := o.Sysctl
			o.Sysctl = func(k string) (string, error) {
				if strings.HasPrefix(k, "net/bridge") {
					return "", fs.ErrNotExist
				}
				return as(k)
			}
		}, "", false},
		{"no bridge", func(o *Observed) { delete(o.Links, Name) }, "weir0 isn't there", false},
		{
			"another's bridge", func(o *Observed) { edit(o, Name, func(l *Link) { l.Kind = "dummy" }) }, "weir0 is a dummy",
			false,
		},
		{"bridge down", func(o *Observed) { edit(o, Name, func(l *Link) { l.Up = false }) }, "weir0 is down", false},
		{"a bridge made for the other address", func(o *Observed) {
			edit(o, Name, func(l *Link) { l.MAC = MAC(netip.MustParseAddr("fd00::1")) })
		}, "", false},
		{
			"MAC", func(o *Observed) { edit(o, Name, func(l *Link) { l.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9} }) },
			"has MAC 02:00:00:00:00:09", false,
		},
		{"spanning tree", func(o *Observed) { o.Links[Name].Bridge[nl.IFLA_BR_STP_STATE] = 1 }, "stp_state 1", false},
		{
			"link-local", func(o *Observed) { o.Addresses[1] = append(o.Addresses[1], netip.MustParsePrefix("fe80::1/64")) },
			"fe80::1/64", false,
		},
		{"gateway", func(o *Observed) { o.Addresses[1] = o.Addresses[1][:1] }, "lacks the address fd00::1/128", false},
		{"route elsewhere", func(o *Observed) { o.Routes[0].Link = 7 }, "the route to 10.88.0.0/24", false},
		{
			"local route", func(o *Observed) { o.Routes = o.Routes[2:]; o.Routes = append(o.Routes, whole().Routes[0]) },
			"local route of 10.88.0.1", false,
		},
		{"the pod is gone", func(o *Observed) { delete(o.Links, "weirp1") }, "", false},
		{"port down", func(o *Observed) {
			edit(o, "weirp1", func(l *Link) { l.Up, l.Running = false, false })
		}, "weirp1 is down", false},
		{
			"not isolated", func(o *Observed) { o.Links["weirp1"].Port[nl.IFLA_BRPORT_ISOLATED] = 0 },
			"has isolated 0 instead of 1", false,
		},
		{"off the bridge", func(o *Observed) { edit(o, "weirp1", func(l *Link) { l.Master = 0 }) }, "not on weir0", false},
		{"disabled", func(o *Observed) { o.Links["weirp1"].Port[nl.IFLA_BRPORT_STATE] = 0 }, "its state is 0", false},
		{
			"MTU of the pod's end", func(o *Observed) { o.PodMTU = func(Link) (int, error) { return 9000, nil } },
			"has MTU 1500, and its other end 9000", false,
		},
		{"forwarding entry", func(o *Observed) { o.Forwarding = nil }, "forwarding entry for 0a:58:0a:58:00:02", false},
		{
			"neighbour", func(o *Observed) { delete(o.Neighbours[1], netip.MustParseAddr("fd00::2")) }, "neighbour fd00::2",
			false,
		},
		{"another's route", func(o *Observed) {
			edit(o, "cni0", func(l *Link) { l.Name, l.Index = "cni0", 9 })
			o.Routes = append([]routeSeen{{
				Link: 9, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Dst: netip.MustParsePrefix("10.88.0.0/24"),
			}}, o.Routes...)
		}, "by weir0 isn't used: another route to it comes first: it leads to cni0", false},
		{"another's blackhole", func(o *Observed) {
			o.Routes = append([]routeSeen{{
				Table: unix.RT_TABLE_MAIN, Type: unix.RTN_BLACKHOLE, Dst: netip.MustParsePrefix("fd00::/64"),
			}}, o.Routes...)
		}, "the route to fd00::/64 by weir0 isn't used", false},
		{"another's neighbour", func(o *Observed) {
			o.Neighbours[1][netip.MustParseAddr("10.88.0.2")] = neighbourSeen{"02:00:00:00:00:09", true}
		}, "neighbour 10.88.0.2", false},
		{"router", func(o *Observed) {
			edit(o, "eth0", func(l *Link) { l.Name, l.Index = "eth0", 9 })
			o.Routes = append(o.Routes, routeSeen{Link: 9, Protocol: unix.RTPROT_RA, Dst: netip.MustParsePrefix("::/0")})
			as := o.Sysctl
			o.Sysctl = func(k string) (string, error) {
				if k == "net/ipv6/conf/eth0/accept_ra" {
					return "1", nil
				}
				return as(k)
			}
		}, "accept_ra is 1 on eth0", false},
		{"links unread", func(o *Observed) { o.links, o.Links = broken, nil }, "", true},
		{"addresses unread", func(o *Observed) { o.addresses, o.Addresses = broken, nil }, "", true},
		{"neighbours unread", func(o *Observed) { o.neighbours = broken }, "", true},
		{"forwarding entries unread", func(o *Observed) { o.forwarding = broken }, "", true},
		{"routes unread", func(o *Observed) { o.routes = broken }, "", true},
		{"sysctls unread", func(o *Observed) { o.Sysctl = func(string) (string, error) { return "", broken } }, "", true},
		{"the pod's end unread", func(o *Observed) { o.PodMTU = func(Link) (int, error) { return 0, broken } }, "", true},
	} {
		o := whole()
		tc.change(o)
		got := Compare(Properties(Knowledge{Pods: []Pod{dualPod()}}), o)
		if tc.unknown {
			if len(got) == 0 {
				t.Errorf("%s: nothing is said to be unknown", tc.name)
			}
			for _, d := range got {
				if !d.Unknown() || !errors.Is(d.Was, broken) {
					t.Errorf("%s: %v; want it to be unknown, and why", tc.name, d)
				}
			}
			continue
		}
		if (len(got) == 1) != (tc.want != "") ||
			len(got) == 1 && (got[0].Unknown() || !strings.Contains(got[0].Was.Error(), tc.want)) {
			t.Errorf("%s: %v; want one difference with %q", tc.name, got, tc.want)
		}
	}
}
