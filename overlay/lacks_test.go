package overlay

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
)

// TestLacks: Lacks names each thing of a plan that the kernel lacks, and nothing else.
func TestLacks(t *testing.T) {
	far := Remote{Node: "far", Address: netip.MustParseAddr("192.0.2.2"), Network: netip.MustParsePrefix("10.88.1.0/24")}
	near := Remote{
		Node:    "near",
		Address: netip.MustParseAddr("192.0.2.3"),
		Network: netip.MustParsePrefix("10.88.2.0/24"),
		Direct:  true,
	}
	plan := Plan{
		NodeAddress: netip.MustParseAddr("192.0.2.1"),
		Gateways:    []netip.Addr{netip.MustParseAddr("10.88.0.0")},
		Remotes:     []Remote{far, near},
		TunnelMTU:   1450,
	}
	const tunnel, uplink = 5, 2
	mac := MAC(far.Address).String()
	whole := func() *bridge.Observed {
		return &bridge.Observed{
			Links:      map[string]bridge.Link{conf.Tunnel: {Name: conf.Tunnel, Index: tunnel, Up: true, MTU: 1450}},
			Addresses:  map[int][]netip.Prefix{tunnel: {netip.MustParsePrefix("10.88.0.0/32")}},
			Neighbours: map[int]map[netip.Addr]bridge.NeighbourSeen{tunnel: {far.Via(): {MAC: mac, Permanent: true}}},
			Forwarding: map[int]map[string]bool{tunnel: {mac: true, mac + " 192.0.2.2": true}},
			Routes: []bridge.RouteSeen{
				{Link: tunnel, Table: unix.RT_TABLE_MAIN, Dst: far.Network, Protocol: conf.RouteProtocol},
				{Link: uplink, Table: unix.RT_TABLE_MAIN, Dst: near.Network, Protocol: conf.RouteProtocol},
			},
		}
	}
	setLink := func(o *bridge.Observed, f func(*bridge.Link)) {
		l := o.Links[conf.Tunnel]
		f(&l)
		o.Links[conf.Tunnel] = l
	}
	for _, tc := range []struct {
		name   string
		change func(*bridge.Observed)
		want   string // part of the only lack's text; empty: nothing is missing
	}{
		{"nothing", func(*bridge.Observed) {}, ""},
		{"the device", func(o *bridge.Observed) { o.Links = nil }, "weir-vxlan isn't there"},
		{"it is down", func(o *bridge.Observed) { setLink(o, func(l *bridge.Link) { l.Up = false }) }, "weir-vxlan is down"},
		{"MTU", func(o *bridge.Observed) { setLink(o, func(l *bridge.Link) { l.MTU = 1280 }) }, "has MTU 1280, not 1450"},
		{"address", func(o *bridge.Observed) { o.Addresses = nil }, "lacks the address 10.88.0.0"},
		{"neighbour", func(o *bridge.Observed) { o.Neighbours = nil }, "neighbour 10.88.1.0"},
		{"another's MAC", func(o *bridge.Observed) {
			o.Neighbours[tunnel][far.Via()] = bridge.NeighbourSeen{MAC: "02:00:00:00:00:01", Permanent: true}
		}, "neighbour 10.88.1.0"},
		{
			"forwarding entry to another node", func(o *bridge.Observed) { delete(o.Forwarding[tunnel], mac+" 192.0.2.2") },
			"for node far",
		},
		{"route", func(o *bridge.Observed) { o.Routes = o.Routes[1:] }, "the route to 10.88.1.0/24 (node far)"},
		{"route elsewhere", func(o *bridge.Observed) { o.Routes[0].Link = uplink }, "the route to 10.88.1.0/24 (node far)"},
		{
			"a stranger's route", func(o *bridge.Observed) { o.Routes[1].Protocol = unix.RTPROT_STATIC },
			"the route to 10.88.2.0/24 (node near)",
		},
	} {
		o := whole()
		tc.change(o)
		got, err := plan.Lacks(o)
		if err != nil || (len(got) == 1) != (tc.want != "") ||
			len(got) == 1 && (!strings.Contains(got[0].Was, tc.want) || got[0].Command == "") {
			t.Errorf("%s: %v, %v; want one with %q", tc.name, got, err, tc.want)
		}
	}
}
