package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/test/nodetest"
)

// attachClosed makes the record and the link of a pod with enforcement "closed" that started without an agent.
func (s *stepped) attachClosed(name, address string) endpoint.Endpoint {
	s.Helper()
	addr := endpoint.Address{
		Addr: netip.MustParseAddr(address), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
		Gateway: netip.MustParseAddr("10.88.0.1"),
	}
	id := endpoint.ID("shop."+name, "eth0")
	e := endpoint.Endpoint{
		ContainerID: "shop." + name, IfName: "eth0", HostIf: bridge.PortName(id), MAC: bridge.MAC(addr.Addr).String(),
		Enforcement: conf.Closed, Pod: endpoint.Pod{Namespace: "shop", Name: name}, Addresses: []endpoint.Address{addr},
	}
	nodetest.Run(s.T, "ip", "link", "add", e.HostIf, "type", "veth", "peer", "name", name+"-eth0")
	making, err := e.Begin()
	if err == nil {
		err = making.Close()
	}
	if err != nil {
		s.Fatal(err)
	}
	return e
}

// repair lets upkeep check and repair the node, with the agent's present knowledge.
func (s *stepped) repair() {
	s.Helper()
	found, err := s.upkeep.check(s.netlink, s.upkeep.known.Load())
	for _, d := range found {
		err = errors.Join(err, d.Failed)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// TestLinksOfMisplacedPodsStayDown: if another node may have the address of a pod that started without an agent, the
// pod's link stays down. The link comes up once the Node has a podCIDR with the address.
func TestLinksOfMisplacedPodsStayDown(t *testing.T) {
	for name, cidrs := range map[string][]string{"no podCIDR": nil, "another podCIDR": {"10.99.0.0/24"}} {
		t.Run(name, func(t *testing.T) {
			if !nodetest.Isolated(t) {
				return
			}
			nodetest.Run(t, "ip", "link", "add", bridge.Name, "type", "bridge")
			objects := healthy()
			objects.Nodes[0] = node("self", "192.0.2.2", cidrs...)
			s := step(t, objects)
			s.Node = NodeOptions{Name: "self", Conflist: filepath.Join(t.TempDir(), "10-weir.conflist")}
			s.settleClaims()
			e := s.attachClosed("web", "10.88.0.2")
			want := func(when string, up bool) {
				t.Helper()
				for _, step := range []func(){func() { s.hear(netfilter.All) }, s.repair} {
					step()
					if is, err := s.isUp(e); is != up || err != nil {
						t.Errorf("%s: the link is up: %v, %v", when, is, err)
					}
				}
			}
			want(fmt.Sprint("podCIDRs ", cidrs), false)
			want("a second time", false)
			s.know(healthy())
			want("the Node has the address", true)
			nodetest.Run(t, "ip", "link", "set", e.HostIf, "down")
			s.repair()
			if up, err := s.isUp(e); !up || err != nil {
				t.Errorf("another program has set the link down, and it wasn't set up again: %v", err)
			}
		})
	}
}
