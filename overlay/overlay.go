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

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
const addrGenModeNone = 1

// Overlay writes plans to the kernel.
type Overlay struct{ h netlinksafe.Handle }

// New returns an Overlay in the network namespace of the handle.
func New(h netlinksafe.Handle) *Overlay { return &Overlay{h} }

// Apply makes the kernel's overlay equal to the plan: it adds what is missing, replaces what differs, and removes what
// the plan doesn't have. If the kernel refuses a route or an entry of one node, Apply returns the refusal as a problem
// of that node and writes everything else. If the plan has no node address, Apply only removes weir's routes. Apply
// doesn't switch on IP forwarding: the plugin does so when it makes the bridge.
func (o *Overlay) Apply(p Plan) ([]ruleset.Problem, error) {
	if !p.NodeAddress.IsValid() {
		return nil, o.removeRoutes(nil)
	}
	var tunnel netlink.Link
	refused := refusals{}
	if slices.ContainsFunc(p.Remotes, func(remote Remote) bool { return !remote.Direct }) {
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

// refusals are the kernel's errors by the name of the node that they concern.
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

// ensureTunnel makes the VXLAN device if it is missing, and replaces it if sameTunnel is false, for instance after a
// change of the node's address. It returns the device.
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
		return nil, fmt.Errorf("%s: the MTU of the paths to other nodes is unknown", conf.Tunnel)
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
	// Before the link is up: if the link came up with a link-local address, the kernel would solicit routers through the
	// tunnel.
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

// checkNodeAddress returns an error unless a link has the address: a tunnel can't begin at an address that the node
// doesn't have.
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

// sameTunnel reports whether the link is a VXLAN device with the wanted VNI, address, port and MAC that learns nothing.
// If not, ensureTunnel makes a new device.
func sameTunnel(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port &&
		!have.Learning && have.HardwareAddr.String() == want.HardwareAddr.String()
}

// setAddresses makes the device's addresses equal to want.
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

// hostNet returns the network of that address alone.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// setNeighbours makes the device's neighbour and forwarding entries those of the remotes behind the tunnel.
//
// Equivalent to:
//
//	ip neigh replace VIA lladdr MAC dev weir-vxlan nud permanent
//	bridge fdb replace MAC dev weir-vxlan dst NODE self permanent
func (o *Overlay) setNeighbours(tunnel netlink.Link, remotes []Remote, refused refusals) error {
	index := tunnel.Attrs().Index
	want, node := map[string]netlink.Neigh{}, map[string]string{}
	for _, p := range remotes {
		if p.Direct {
			continue
		}
		neigh := netlink.Neigh{
			LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
			IP: p.Via().AsSlice(), HardwareAddr: MAC(p.Address),
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
		// If a node's address has changed, its old entries are deleted by now, so they don't conflict with the new ones.
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

// entry returns a key for the neighbour or forwarding entry.
func entry(n netlink.Neigh) string { return fmt.Sprint(n.Family, n.IP, n.HardwareAddr) }

// setRoutes makes weir's routes to the remote networks equal to the plan's.
//
// Equivalent to:
//
//	ip route add NETWORK via VIA dev weir-vxlan onlink src GATEWAY proto 88  (replace, if weir has a route there already)
//	ip route add NETWORK via NODE proto 88                                   (without a tunnel)
func (o *Overlay) setRoutes(tunnel netlink.Link, p Plan, refused refusals) error {
	have, err := o.weirRoutes()
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for _, remote := range p.Remotes {
		if refused[remote.Node] != nil {
			continue
		}
		network := remote.Network.Addr()
		dst := &net.IPNet{IP: network.AsSlice(), Mask: net.CIDRMask(remote.Network.Bits(), network.BitLen())}
		want[dst.String()] = true
		r := &netlink.Route{Dst: dst, Protocol: conf.RouteProtocol, Gw: remote.Address.AsSlice()}
		h, ok := have[dst.String()]
		if !remote.Direct {
			r.Gw, r.LinkIndex, r.Flags = remote.Via().AsSlice(), tunnel.Attrs().Index, int(netlink.FLAG_ONLINK)
			r.Src = p.gateway(network).AsSlice()
			if ok && h.LinkIndex == r.LinkIndex && h.Gw.Equal(r.Gw) && h.Src.Equal(r.Src) {
				continue
			}
		}
		// A route without a tunnel is always written again, because its next hop may be on another link by now.
		set := o.h.RouteReplace
		if !ok { // fails if another program has a route there, such as that of a subnet on one of the node's links
			set = o.h.RouteAdd
		}
		if err := set(r); err != nil {
			refused[remote.Node] = fmt.Errorf("add the route to %s: %w", remote.Network, err)
		}
	}
	return o.removeRoutes(want)
}

// weirRoutes returns the routes of weir's protocol by destination.
func (o *Overlay) weirRoutes() (map[string]netlink.Route, error) {
	list, err := o.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: conf.RouteProtocol},
		netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list weir's routes: %w", err)
	}
	own := make(map[string]netlink.Route, len(list))
	for _, r := range list {
		own[r.Dst.String()] = r
	}
	return own, nil
}

// removeRoutes deletes weir's routes, except the routes to the destinations in keep.
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

// Remove deletes the whole overlay: routes, device and gate.
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
