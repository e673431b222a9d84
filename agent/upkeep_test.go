package agent

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRepairBesideDEL: if a check restores a neighbour entry that a DEL has removed, the check removes the entry again.
func TestRepairBesideDEL(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "ip", "link", "add", bridge.Name, "type", "bridge")
	nodetest.Run(t, "ip", "link", "set", bridge.Name, "up")
	mac := net.HardwareAddr{0x0a, 0x58, 0x0a, 0x58, 0, 2}
	record := func(name, address string) endpoint.Endpoint {
		t.Helper()
		e := endpoint.Endpoint{
			ContainerID: name, IfName: "eth0", HostIf: bridge.PortName(name + ":eth0"), MAC: mac.String(),
			Enforcement: conf.Strict, Pod: endpoint.Pod{Namespace: "shop", Name: name},
			Addresses: []endpoint.Address{{
				Addr: netip.MustParseAddr(address), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
			}},
		}
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
		return e
	}
	records := []endpoint.Endpoint{record("ending", "10.88.0.2"), record("staying", "10.88.0.3")}
	if _, err := endpoint.MarkEnding(records[0].ID()); err != nil {
		t.Fatal(err)
	}
	u := newUpkeep()
	never := func(endpoint.Endpoint) bool { return false }
	var restored []bridge.Difference
	for _, e := range records {
		addr := e.Addresses[0].Addr
		nodetest.Run(t, "ip", "neigh", "add", addr.String(), "lladdr", mac.String(), "dev", bridge.Name, "nud", "permanent")
		for _, p := range u.properties(&nodeKnowledge{}, 1<<30, []endpoint.Endpoint{e}, never) {
			if p.Kind() == bridge.KindNeighbour {
				restored = append(restored, bridge.Difference{Property: p, Was: net.ErrClosed})
			}
		}
	}
	staying := restored[1].Property.Command()
	reported, err := u.withoutEnding(restored, &nodeKnowledge{}, 1<<30, records)
	if err != nil {
		t.Fatal(err)
	}
	if len(reported) != 1 || reported[0].Property.Command() != staying {
		t.Errorf("reported %v, want only the staying pod's neighbour entry", reported)
	}
	link, err := netlink.LinkByName(bridge.Name)
	if err != nil {
		t.Fatal(err)
	}
	present, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true} {
		addr := records[i].Addresses[0].Addr
		has := slices.ContainsFunc(present, func(n netlink.Neigh) bool { return n.IP.Equal(addr.AsSlice()) })
		if has != want {
			t.Errorf("weir0 has a neighbour entry for %s: %v, want %v", addr, has, want)
		}
	}
}

// TestNodeIsObservedAgain: a check observes the node again if the kernel has announced a change, if no message of the
// kernel has come yet, or if the last observation is a minute old (observeEvery). Otherwise the check reads only the
// sysctls again.
func TestNodeIsObservedAgain(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	u := newUpkeep()
	check := func() (repaired int) {
		t.Helper()
		found, err := u.check(links, &nodeKnowledge{})
		for _, d := range found {
			err = errors.Join(err, d.Failed)
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	observed := func(when string, again bool) {
		t.Helper()
		before := u.seen.Observed
		if n := check(); n > 0 {
			t.Errorf("%s: %d repairs", when, n)
		}
		if (u.seen.Observed != before) != again {
			t.Errorf("%s: observed again: %v, want %v", when, !again, again)
		}
	}
	(&nodetest.Node{TB: t}).Eventually("no address is fresh", func() error {
		if check(); u.seen.Observed == nil {
			return errors.New("the observation doesn't last")
		}
		return nil
	})
	observed("nothing was announced yet", true)
	observed("the kernel's messages aren't received yet", true)
	u.hear(bridge.News{Settings: true})
	observed("an announcement", true)
	observed("nothing has changed", false)
	u.hear(bridge.News{Underlay: true})
	observed("an announcement about the underlay", true)
	u.seen.at = u.seen.at.Add(-observeEvery)
	observed("a minute later", true)
	nodetest.Run(t, "sysctl", "-qw", "net.ipv4.ipfrag_time=30")
	if n := check(); n != 1 {
		t.Errorf("a sysctl was changed: %d repairs, want 1", n)
	}
	observed("the sysctl was repaired", true)
	observed("nothing has changed since the repair", false)
}
