package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

const (
	// vni names weir's network among others' on the same port (RFC 7348, section 5: 24 bits).
	vni = 88
	// routeProtocol marks weir's routes, so that those of others in the same table are left alone (rtnetlink(7); below
	// 256, not in iproute2's list).
	routeProtocol = 88
	// noGeneratedAddress is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
	noGeneratedAddress = 1
)

// Overlay brings plans into the kernel.
type Overlay struct{ h netlinksafe.Handle }

// New uses the handle.
func New(h netlinksafe.Handle) *Overlay { return &Overlay{h} }

// SameSubnet says whether the address is on one of the node's own links, by asking for the route to it.
//
// Equivalent to: ip route get ADDR
func (o *Overlay) SameSubnet(addr netip.Addr) bool {
	routes, err := o.h.RouteGet(addr.AsSlice())
	return err == nil && len(routes) == 1 && routes[0].Gw == nil
}

// MTU that pods may use with the encapsulation, in bytes: that of the link with the node's address, less what a tunnel
// takes.
func (o *Overlay) MTU(local netip.Addr, e Encapsulation) (int, error) {
	link, err := o.underlay(local)
	if err != nil {
		return 0, err
	}
	if e == Never {
		return link.Attrs().MTU, nil
	}
	return link.Attrs().MTU - Overhead(local), nil
}

func (o *Overlay) underlay(local netip.Addr) (netlink.Link, error) {
	addrs, err := o.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == local {
			link, err := o.h.LinkByIndex(a.LinkIndex)
			if err != nil {
				return nil, fmt.Errorf("look up the link with address %s: %w", local, err)
			}
			return link, nil
		}
	}
	return nil, fmt.Errorf("no link has the node's address %s", local)
}

// Apply makes the kernel's overlay the planned one: what is missing is added, what differs is replaced, and what nobody
// plans any more is removed. That the node forwards packets at all is the plugin's doing, when it makes the bridge.
func (o *Overlay) Apply(p Plan) error {
	if !p.Local.IsValid() {
		return o.removeRoutes(nil)
	}
	var tunnel netlink.Link
	if slices.ContainsFunc(p.Peers, func(peer Peer) bool { return !peer.Direct }) {
		var err error
		if tunnel, err = o.ensureTunnel(p); err != nil {
			return err
		}
		if err := o.neighbours(tunnel, p.Peers); err != nil {
			return err
		}
	} else if err := o.removeTunnel(); err != nil {
		return err
	}
	return o.routes(tunnel, p)
}

// ensureTunnel makes the VXLAN device, or makes it anew if the node's address has changed.
//
// Equivalent to:
//
//	ip link add weir-vxlan address MAC mtu MTU type vxlan id 88 local ADDR dstport 4789 nolearning
//	ip link set weir-vxlan addrgenmode none
//	ip addr replace GATEWAY/32 dev weir-vxlan; ip link set weir-vxlan up
func (o *Overlay) ensureTunnel(p Plan) (netlink.Link, error) {
	under, err := o.underlay(p.Local)
	if err != nil {
		return nil, err
	}
	mtu := under.Attrs().MTU - Overhead(p.Local)
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: conf.Tunnel, HardwareAddr: MAC(p.Local), MTU: mtu, TxQLen: -1},
		VxlanId:   vni, SrcAddr: p.Local.AsSlice(), Port: conf.OverlayPort, Learning: false,
	}
	link, err := o.h.LinkByName(conf.Tunnel)
	if err == nil && !fits(link, want) {
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
		if err := o.h.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("create %s: %w", conf.Tunnel, err)
		}
		if link, err = o.h.LinkByName(conf.Tunnel); err != nil {
			return nil, fmt.Errorf("look up new %s: %w", conf.Tunnel, err)
		}
	}
	if link.Attrs().MTU != mtu {
		if err := o.h.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("set the MTU of %s to %d: %w", conf.Tunnel, mtu, err)
		}
	}
	// Before it is up: with a link-local address the kernel would ask for routers in the tunnel.
	if err := o.h.LinkSetIP6AddrGenMode(link, noGeneratedAddress); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("keep %s from a link-local address: %w", conf.Tunnel, err)
	}
	if err := o.onlyAddresses(link, p.Gateways); err != nil {
		return nil, err
	}
	if err := o.h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", conf.Tunnel, err)
	}
	return link, nil
}

func fits(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port &&
		!have.Learning && have.HardwareAddr.String() == want.HardwareAddr.String()
}

// onlyAddresses makes these the device's only ones.
func (o *Overlay) onlyAddresses(link netlink.Link, want []netip.Addr) error {
	have, err := o.h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", conf.Tunnel, err)
	}
	has := map[string]bool{}
	for _, a := range have {
		has[a.IPNet.String()] = true
		wanted := slices.ContainsFunc(want, func(w netip.Addr) bool { return single(w).String() == a.IPNet.String() })
		if wanted {
			continue
		}
		if err := o.h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("delete address %s of %s: %w", a.IPNet, conf.Tunnel, err)
		}
	}
	for _, w := range want {
		if has[single(w).String()] {
			continue
		}
		addr := &netlink.Addr{IPNet: single(w)}
		if w.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := o.h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", w, conf.Tunnel, err)
		}
	}
	return nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// neighbours makes the neighbour and forwarding entries of the peers behind the tunnel the device's only ones.
//
// Equivalent to:
//
//	ip neigh replace VIA lladdr MAC dev weir-vxlan nud permanent
//	bridge fdb replace MAC dev weir-vxlan dst NODE self permanent
func (o *Overlay) neighbours(tunnel netlink.Link, peers []Peer) error {
	index := tunnel.Attrs().Index
	want := map[string]netlink.Neigh{}
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
	for _, n := range want {
		// A changed node keeps its entry's key and gets another value, so what was there is gone by now.
		set := o.h.NeighSet
		if n.Family == unix.AF_BRIDGE {
			set = o.h.NeighAppend
		}
		if err := set(&n); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add neighbour %s (%s) to %s: %w", n.IP, n.HardwareAddr, conf.Tunnel, err)
		}
	}
	return nil
}

func entry(n netlink.Neigh) string { return fmt.Sprint(n.Family, n.IP, n.HardwareAddr) }

// routes makes weir's routes to the peers' networks the planned ones.
//
// Equivalent to:
//
//	ip route replace NETWORK via VIA dev weir-vxlan onlink src GATEWAY proto 88
//	ip route replace NETWORK via NODE proto 88                                   (without a tunnel)
func (o *Overlay) routes(tunnel netlink.Link, p Plan) error {
	want := map[string]bool{}
	for _, peer := range p.Peers {
		dst := &net.IPNet{IP: peer.Network.Addr().AsSlice(), Mask: net.CIDRMask(peer.Network.Bits(), peer.Network.Addr().BitLen())}
		r := &netlink.Route{Dst: dst, Protocol: routeProtocol, Gw: peer.Address.AsSlice()}
		if !peer.Direct {
			r.Gw, r.LinkIndex, r.Flags, r.Src = peer.Via().AsSlice(), tunnel.Attrs().Index, int(netlink.FLAG_ONLINK), p.gateway(peer.Network.Addr()).AsSlice()
		}
		if err := o.h.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route to %s (node %s): %w", peer.Network, peer.Node, err)
		}
		want[dst.String()] = true
	}
	return o.removeRoutes(want)
}

func (o *Overlay) removeRoutes(keep map[string]bool) error {
	have, err := o.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list weir's routes: %w", err)
	}
	for _, r := range have {
		if keep[r.Dst.String()] {
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
// Equivalent to: ip route flush proto 88; ip link del weir-vxlan
func (o *Overlay) Remove() error {
	return errors.Join(o.removeRoutes(nil), o.removeTunnel())
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
