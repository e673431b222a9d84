package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

type entry struct {
	family int
	ip     netip.Addr
	mac    string // the MAC's bytes, not its text
}

func entryOf(family int, n netlink.Neigh) entry {
	ip, _ := netip.AddrFromSlice(n.IP)
	return entry{family, ip.Unmap(), string(n.HardwareAddr)}
}

func (p Remote) neighbour(tunnel int) netlink.Neigh {
	n := netlink.Neigh{
		LinkIndex: tunnel, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: p.via().AsSlice(), HardwareAddr: MAC(p.Address),
	}
	if p.via().Is6() {
		n.Family = netlink.FAMILY_V6
	}
	return n
}

func (p Remote) forwarding(tunnel int) netlink.Neigh {
	return netlink.Neigh{
		LinkIndex: tunnel, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: p.Address.AsSlice(), HardwareAddr: MAC(p.Address),
	}
}

// setNeighbours gives the tunnel one neighbour entry and one forwarding entry for each remote (a network of another
// node) behind the tunnel, and deletes other entries except those for multicast. If the kernel refuses a new entry,
// setNeighbours adds the node and the error to refused.
//
// Equivalent to:
//
//	ip neigh replace VIA lladdr MAC dev weir-vxlan nud permanent
//	bridge fdb append MAC dev weir-vxlan dst NODE self permanent
func (o *Overlay) setNeighbours(tunnel int, remotes []Remote, all *Applied, refused refusals) error {
	want := make(map[entry]bool, 2*len(remotes))
	for _, p := range remotes {
		if !p.Direct {
			want[entryOf(p.neighbour(tunnel).Family, p.neighbour(tunnel))] = true
			want[entryOf(unix.AF_BRIDGE, p.forwarding(tunnel))] = true
		}
	}
	has := make(map[entry]bool, len(want))
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, unix.AF_BRIDGE} {
		have, err := o.h.NeighList(tunnel, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", conf.Tunnel, err)
		}
		for _, n := range have {
			key := entryOf(family, n)
			if want[key] && n.State&netlink.NUD_PERMANENT != 0 {
				has[key] = true
				continue
			}
			if n.IP == nil || n.IP.IsMulticast() {
				continue
			}
			if n.Family = family; family == unix.AF_BRIDGE {
				n.Flags = netlink.NTF_SELF
			}
			if err := o.h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete neighbour %s (%s) of %s: %w", n.IP, n.HardwareAddr, conf.Tunnel, err)
			}
		}
	}
	for _, p := range remotes {
		if p.Direct {
			continue
		}
		if n := p.neighbour(tunnel); !has[entryOf(n.Family, n)] {
			has[entryOf(n.Family, n)] = true // several networks of a node may share an entry
			all.lackTo(p.Node, fmt.Sprintf("the neighbour %s of %s (node %s) is missing", p.via(), conf.Tunnel, p.Node),
				"ip neigh replace %s lladdr %s dev %s nud permanent", p.via(), n.HardwareAddr, conf.Tunnel)
			refused.take(p.Node, n, o.h.NeighSet(&n))
		}
		if n := p.forwarding(tunnel); !has[entryOf(n.Family, n)] {
			has[entryOf(n.Family, n)] = true
			all.lackTo(p.Node, fmt.Sprintf("the forwarding entry of %s for node %s is missing", conf.Tunnel, p.Node),
				"bridge fdb replace %s dev %s dst %s self permanent", n.HardwareAddr, conf.Tunnel, p.Address)
			refused.take(p.Node, n, o.h.NeighAppend(&n))
		}
	}
	return nil
}

func (r refusals) take(node string, n netlink.Neigh, err error) {
	if err != nil && !errors.Is(err, unix.EEXIST) {
		r[node] = fmt.Errorf("add neighbour %s (%s) to %s: %w", n.IP, n.HardwareAddr, conf.Tunnel, err)
	}
}

func (p Remote) route(tunnel int, plan Plan) netlink.Route {
	network := p.Network.Addr()
	r := netlink.Route{
		Dst:      &net.IPNet{IP: network.AsSlice(), Mask: net.CIDRMask(p.Network.Bits(), network.BitLen())},
		Protocol: conf.RouteProtocol, Gw: p.Address.AsSlice(), LinkIndex: p.Link,
	}
	if !p.Direct {
		r.Gw, r.LinkIndex, r.Flags = p.via().AsSlice(), tunnel, int(netlink.FLAG_ONLINK)
		r.Src = plan.gateway(network).AsSlice()
	}
	return r
}

// sameRoute reports whether the kernel's route (have) is the wanted one (want). If the wanted route has no link, the
// kernel's route may use any link except the tunnel.
func sameRoute(have, want netlink.Route, tunnel int) bool {
	link := have.LinkIndex == want.LinkIndex || want.LinkIndex == 0 && have.LinkIndex != tunnel
	return link && have.Gw.Equal(want.Gw) && have.Src.Equal(want.Src) && have.MTU == 0 && len(have.MultiPath) == 0 &&
		have.Type == unix.RTN_UNICAST
}

// setRoutes makes weir's routes equal to the routes of the plan. But it deletes the routes to nodes in refused, because
// the kernel has refused the entries of these nodes. If the kernel refuses a new route, setRoutes adds the node and the
// error to refused.
//
// Equivalent to:
//
//	ip route add NETWORK via VIA dev weir-vxlan onlink src GATEWAY proto 88  (replace, if weir has a route there)
//	ip route add NETWORK via NODE proto 88                                   (without a tunnel)
func (o *Overlay) setRoutes(tunnel int, p Plan, all *Applied, refused refusals) error {
	have, err := o.weirRoutes()
	if err != nil {
		return err
	}
	for _, remote := range p.Remotes {
		if refused[remote.Node] != nil {
			continue
		}
		r := remote.route(tunnel, p)
		present := have[remote.Network]
		delete(have, remote.Network)
		kept := -1
		for i, h := range present {
			if sameRoute(h, r, tunnel) {
				kept = i
				break
			}
		}
		if kept >= 0 {
			have[remote.Network] = append(present[:kept:kept], present[kept+1:]...) // the network's other routes are deleted
			continue
		}
		all.lackTo(remote.Node, fmt.Sprintf("the route to %s (node %s) is missing", remote.Network, remote.Node),
			"%s", remote.command())
		// Without a tunnel, the kernel chooses the link by the next hop.
		if remote.Direct {
			r.LinkIndex = 0
		}
		set := o.h.RouteReplace
		if len(present) == 0 {
			set = o.h.RouteAdd // fails if another program has a route there
		}
		if err := set(&r); err != nil {
			refused[remote.Node] = fmt.Errorf("add the route to %s: %w", remote.Network, err)
		}
	}
	return o.deleteRoutes(have)
}

func (p Remote) command() string {
	if p.Direct {
		return fmt.Sprintf("ip route replace %s via %s proto %d", p.Network, p.Address, conf.RouteProtocol)
	}
	return fmt.Sprintf("ip route replace %s via %s dev %s onlink proto %d", p.Network, p.via(), conf.Tunnel,
		conf.RouteProtocol)
}

func (o *Overlay) weirRoutes() (map[netip.Prefix][]netlink.Route, error) {
	list, err := o.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: conf.RouteProtocol},
		netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list weir's routes: %w", err)
	}
	own := make(map[netip.Prefix][]netlink.Route, len(list))
	for _, r := range list {
		if addr, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			dst := netip.PrefixFrom(addr.Unmap(), prefixLength(r.Dst))
			own[dst] = append(own[dst], r)
		}
	}
	return own, nil
}

func (o *Overlay) removeRoutes() error {
	have, err := o.weirRoutes()
	if err != nil {
		return err
	}
	return o.deleteRoutes(have)
}

func (o *Overlay) deleteRoutes(all map[netip.Prefix][]netlink.Route) error {
	for _, routes := range all {
		for _, r := range routes {
			if err := o.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete the route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}
