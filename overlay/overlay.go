package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

const (
	// noGeneratedAddress is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
	addrGenModeNone = 1
)

// Overlay brings plans into the kernel.
type Overlay struct{ h netlinksafe.Handle }

// New uses the handle.
func New(h netlinksafe.Handle) *Overlay { return &Overlay{h} }

// Apply makes the kernel's overlay the planned one: what is missing is added, what differs is replaced, and what nobody
// plans any more is removed. What the kernel doesn't take of one node is a problem of that node, and all else is done.
// That the node forwards packets at all is the plugin's doing, when it makes the bridge.
func (o *Overlay) Apply(p Plan) ([]ruleset.Problem, error) {
	if !p.NodeAddress.IsValid() {
		return nil, o.removeRoutes(nil)
	}
	var tunnel netlink.Link
	refused := refusals{}
	if slices.ContainsFunc(p.Remotes, func(peer Remote) bool { return !peer.Direct }) {
		var err error
		if tunnel, err = o.ensureTunnel(p); err != nil {
			return nil, err
		}
		if err := o.setNeighbours(tunnel, p.Remotes, refused); err != nil {
			return refused.problems(), err
		}
	} else if err := o.removeTunnel(); err != nil {
		return nil, err
	}
	err := o.setRoutes(tunnel, p, refused)
	return refused.problems(), err
}

// refusals are what the kernel didn't take, by the name of the node.
type refusals map[string]error

func (r refusals) problems() []ruleset.Problem {
	var all []ruleset.Problem
	for _, node := range slices.Sorted(maps.Keys(r)) {
		all = append(all, ruleset.Problem{
			Object: "Node " + node, Field: "status.addresses",
			Message: fmt.Sprintf("the kernel refuses the way to it, and its pods can't be reached: %v", r[node]),
		})
	}
	return all
}

// ensureTunnel makes the VXLAN device, or makes it anew if the node's address has changed.
//
// Equivalent to:
//
//	ip link add weir-vxlan address MAC mtu MTU type vxlan id VNI local ADDR dstport PORT nolearning
//	ip link set weir-vxlan addrgenmode none
//	ip addr replace GATEWAY/32 dev weir-vxlan; ip link set weir-vxlan up
func (o *Overlay) ensureTunnel(p Plan) (netlink.Link, error) {
	if err := o.checkNodeAddress(p.NodeAddress); err != nil {
		return nil, err
	}
	if p.TunnelMTU == 0 {
		return nil, fmt.Errorf("%s: it isn't known how large packets may be", conf.Tunnel)
	}
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: conf.Tunnel, HardwareAddr: MAC(p.NodeAddress), MTU: p.TunnelMTU, TxQLen: -1},
		VxlanId:   int(p.VNI), SrcAddr: p.NodeAddress.AsSlice(), Port: int(p.Port), Learning: false,
	}
	link, err := o.h.LinkByName(conf.Tunnel)
	if err == nil && !sameTunnel(link, want) {
		if err := o.h.LinkDel(link); err != nil {
			return nil, fmt.Errorf("delete %s, which has other properties: %w", conf.Tunnel, err)
		}
		err = netlink.LinkNotFoundError{}
		link = nil
	}
	if link == nil {
		if !errors.As(err, &netlink.LinkNotFoundError{}) && err != nil {
			return nil, fmt.Errorf("look up %s: %w", conf.Tunnel, err)
		}
		err := o.h.LinkAdd(want)
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf(
				"create %s: another VXLAN device has VNI %d on port %d; --overlay-vni or --overlay-port give weir's another: %w",
				conf.Tunnel, p.VNI, p.Port, err)
		}
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", conf.Tunnel, err)
		}
		if link, err = o.h.LinkByName(conf.Tunnel); err != nil {
			return nil, fmt.Errorf("look up new %s: %w", conf.Tunnel, err)
		}
	}
	if link.Attrs().MTU != p.TunnelMTU {
		if err := o.h.LinkSetMTU(link, p.TunnelMTU); err != nil {
			return nil, fmt.Errorf("set the MTU of %s to %d: %w", conf.Tunnel, p.TunnelMTU, err)
		}
	}
	// Before it is up: with a link-local address the kernel would ask for routers in the tunnel.
	if err := o.h.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("keep %s from a link-local address: %w", conf.Tunnel, err)
	}
	if err := o.setAddresses(link, p.Gateways); err != nil {
		return nil, err
	}
	if err := o.h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", conf.Tunnel, err)
	}
	return link, nil
}

// has says whether some link has the address: a tunnel can begin nowhere else.
func (o *Overlay) checkNodeAddress(local netip.Addr) error {
	addrs, err := o.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == local {
			return nil
		}
	}
	return fmt.Errorf("no link has the node's address %s", local)
}

func sameTunnel(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port &&
		!have.Learning && have.HardwareAddr.String() == want.HardwareAddr.String()
}

// onlyAddresses makes these the device's only ones.
func (o *Overlay) setAddresses(link netlink.Link, want []netip.Addr) error {
	have, err := o.h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", conf.Tunnel, err)
	}
	has := map[string]bool{}
	for _, a := range have {
		has[a.IPNet.String()] = true
		wanted := slices.ContainsFunc(want, func(w netip.Addr) bool { return hostNet(w).String() == a.IPNet.String() })
		if wanted {
			continue
		}
		if err := o.h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("delete address %s of %s: %w", a.IPNet, conf.Tunnel, err)
		}
	}
	for _, w := range want {
		if has[hostNet(w).String()] {
			continue
		}
		addr := &netlink.Addr{IPNet: hostNet(w)}
		if w.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := o.h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", w, conf.Tunnel, err)
		}
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// neighbours makes the neighbour and forwarding entries of the peers behind the tunnel the device's only ones.
//
// Equivalent to:
//
//	ip neigh replace VIA lladdr MAC dev weir-vxlan nud permanent
//	bridge fdb replace MAC dev weir-vxlan dst NODE self permanent
func (o *Overlay) setNeighbours(tunnel netlink.Link, peers []Remote, refused refusals) error {
	index := tunnel.Attrs().Index
	want, node := map[string]netlink.Neigh{}, map[string]string{}
	for _, p := range peers {
		if p.Direct {
			continue
		}
		neigh := netlink.Neigh{
			LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: p.Via().AsSlice(), HardwareAddr: MAC(p.Address),
		}
		if p.Via().Is6() {
			neigh.Family = netlink.FAMILY_V6
		}
		fdb := netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: p.Address.AsSlice(), HardwareAddr: MAC(p.Address),
		}
		want[entry(neigh)], want[entry(fdb)] = neigh, fdb
		node[entry(neigh)], node[entry(fdb)] = p.Node, p.Node
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, unix.AF_BRIDGE} {
		have, err := o.h.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", conf.Tunnel, err)
		}
		for _, n := range have {
			n.Family = family
			if _, ok := want[entry(n)]; ok && n.State&netlink.NUD_PERMANENT != 0 {
				delete(want, entry(n))
				continue
			}
			if n.IP == nil || n.IP.IsMulticast() {
				continue
			}
			if family == unix.AF_BRIDGE {
				n.Flags = netlink.NTF_SELF
			}
			if err := o.h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete neighbour %s (%s) of %s: %w", n.IP, n.HardwareAddr, conf.Tunnel, err)
			}
		}
	}
	for key, n := range want {
		// A changed node keeps its entry's key and gets another value, so what was there is gone by now.
		set := o.h.NeighSet
		if n.Family == unix.AF_BRIDGE {
			set = o.h.NeighAppend
		}
		if err := set(&n); err != nil && !errors.Is(err, unix.EEXIST) {
			refused[node[key]] = fmt.Errorf("add neighbour %s (%s) to %s: %w", n.IP, n.HardwareAddr, conf.Tunnel, err)
		}
	}
	return nil
}

func entry(n netlink.Neigh) string { return fmt.Sprint(n.Family, n.IP, n.HardwareAddr) }

// routes makes weir's routes to the peers' networks the planned ones.
//
// Equivalent to:
//
//	ip route add NETWORK via VIA dev weir-vxlan onlink src GATEWAY proto 88      (replace, where it is weir's already)
//	ip route add NETWORK via NODE proto 88                                       (without a tunnel)
func (o *Overlay) setRoutes(tunnel netlink.Link, p Plan, refused refusals) error {
	have, err := o.weirRoutes()
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for _, peer := range p.Remotes {
		if refused[peer.Node] != nil {
			continue
		}
		dst := &net.IPNet{IP: peer.Network.Addr().AsSlice(), Mask: net.CIDRMask(peer.Network.Bits(), peer.Network.Addr().BitLen())}
		want[dst.String()] = true
		r := &netlink.Route{Dst: dst, Protocol: conf.RouteProtocol, Gw: peer.Address.AsSlice()}
		h, ok := have[dst.String()]
		if !peer.Direct {
			r.Gw, r.LinkIndex, r.Flags, r.Src = peer.Via().AsSlice(), tunnel.Attrs().Index, int(netlink.FLAG_ONLINK), p.gateway(peer.Network.Addr()).AsSlice()
			if ok && h.LinkIndex == r.LinkIndex && h.Gw.Equal(r.Gw) && h.Src.Equal(r.Src) {
				continue
			}
		}
		// A route without a tunnel is made again each time: the link that its next hop is on may be another than
		// before.
		set := o.h.RouteReplace
		if !ok { // one that is there is another's, such as that of a subnet on one of the node's links
			set = o.h.RouteAdd
		}
		if err := set(r); err != nil {
			refused[peer.Node] = fmt.Errorf("add the route to %s: %w", peer.Network, err)
		}
	}
	return o.removeRoutes(want)
}

// ownRoutes are weir's, by their destinations.
func (o *Overlay) weirRoutes() (map[string]netlink.Route, error) {
	list, err := o.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: conf.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list weir's routes: %w", err)
	}
	own := make(map[string]netlink.Route, len(list))
	for _, r := range list {
		own[r.Dst.String()] = r
	}
	return own, nil
}

func (o *Overlay) removeRoutes(keep map[string]bool) error {
	have, err := o.weirRoutes()
	if err != nil {
		return err
	}
	for dst, r := range have {
		if keep[dst] {
			continue
		}
		if err := o.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// Remove takes the whole overlay away.
//
// Equivalent to: ip route flush proto 88; ip link del weir-vxlan; nft delete table inet weir-tunnel
func (o *Overlay) Remove() error {
	return errors.Join(o.removeRoutes(nil), o.removeTunnel(), Gate{}.Remove())
}

func (o *Overlay) removeTunnel() error {
	link, err := o.h.LinkByName(conf.Tunnel)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = o.h.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", conf.Tunnel, err)
	}
	return nil
}
