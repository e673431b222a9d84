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
	"github.com/weir-net/weir/policy/claims"
)

// Routes implements Paths with the kernel's routing tables. It remembers each path. When routes may have changed, the
// caller must make a new Routes.
type Routes struct {
	h     netlinksafe.Handle
	links map[int]netlink.Link
	known map[[2]netip.Addr]Path
}

func NewRoutes(h netlinksafe.Handle) *Routes {
	return &Routes{h: h, links: map[int]netlink.Link{}, known: map[[2]netip.Addr]Path{}}
}

// To returns the path to an address. It considers all next hops of the route.
//
// Equivalent to: ip route get fibmatch TO from FROM
func (r *Routes) To(from, to netip.Addr) (Path, error) {
	key := [2]netip.Addr{from, to}
	if p, ok := r.known[key]; ok {
		return p, nil
	}
	p, err := r.lookUp(from, to)
	if err == nil {
		r.known[key] = p
	}
	return p, err
}

// lookUp asks the kernel for the path. The parameter from is the node's address. If from is invalid, if no link has
// this address, or if the address to is of the other family, the kernel chooses the source.
func (r *Routes) lookUp(from, to netip.Addr) (Path, error) {
	options := netlink.RouteGetOptions{FIBMatch: true}
	if from.IsValid() && from.BitLen() == to.BitLen() {
		options.SrcAddr = from.AsSlice()
	}
	routes, err := r.h.RouteGetWithOptions(to.AsSlice(), &options)
	if errors.Is(err, unix.EINVAL) && options.SrcAddr != nil { // no link has the node's address
		options.SrcAddr = nil
		routes, err = r.h.RouteGetWithOptions(to.AsSlice(), &options)
	}
	if err != nil {
		return Path{}, fmt.Errorf("look up the route to %s: %w", to, err)
	}
	if len(routes) != 1 {
		return Path{}, fmt.Errorf("look up the route to %s: the kernel reports %d routes", to, len(routes))
	}
	switch route := routes[0]; route.Type {
	case unix.RTN_UNICAST:
		return r.path(route)
	case unix.RTN_LOCAL:
		return Path{Unfit: "one of this node's own"}, nil
	case unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return Path{Unfit: "no single host's"}, nil
	default:
		return Path{}, fmt.Errorf("the route to %s is of type %d, which sends no packets", to, route.Type)
	}
}

// path returns the route's path. Packets may take any next hop, so the smallest MTU counts. The path is OnLink only
// if no next hop is a router.
func (r *Routes) path(route netlink.Route) (Path, error) {
	p := Path{OnLink: true, MTU: route.MTU}
	hops := route.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: route.LinkIndex, Gw: route.Gw, Via: route.Via}}
	}
	for _, hop := range hops {
		if !isZero(hop.Gw) || hop.Via != nil { // Via is a router whose address has the other family
			p.OnLink = false
		}
		link, err := r.link(hop.LinkIndex)
		if err != nil {
			return Path{}, err
		}
		if name := link.Attrs().Name; name == conf.Tunnel || name == conf.Bridge {
			return Path{Unfit: "one that this node reaches through " + name + ", as pods' addresses"}, nil
		}
		p.MTU = smallest(p.MTU, link.Attrs().MTU)
	}
	if len(hops) == 1 {
		p.Link = hops[0].LinkIndex
	}
	return p, nil
}

func isZero(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

func (r *Routes) link(index int) (netlink.Link, error) {
	if l, ok := r.links[index]; ok {
		return l, nil
	}
	l, err := r.h.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("look up link %d, which a route to a node takes: %w", index, err)
	}
	r.links[index] = l
	return l, nil
}

// Uplink returns a Path with only an MTU: the MTU of the link with the node's address. If no link but lo has the
// address, the MTU is the smallest MTU of the default routes of the address's family. If this family has no default
// route, the default routes of the other family count.
//
// Equivalent to: ip addr show to LOCAL; ip route show default
func (r *Routes) Uplink(local netip.Addr) (Path, error) {
	families := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	if local.Is6() {
		families = []int{netlink.FAMILY_V6, netlink.FAMILY_V4}
	}
	own, err := r.addressLink(local)
	if err != nil || own.MTU > 0 {
		return own, err
	}
	for _, family := range families {
		routes, err := r.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return Path{}, fmt.Errorf("list routes: %w", err)
		}
		var least Path
		for _, route := range routes {
			if ones := prefixLength(route.Dst); ones != 0 || route.Type != unix.RTN_UNICAST {
				continue
			}
			p, err := r.path(route)
			if err != nil {
				return Path{}, err
			}
			least.MTU = smallest(least.MTU, p.MTU)
		}
		if least.MTU > 0 {
			return least, nil
		}
	}
	return Path{}, fmt.Errorf(
		"there is no other node yet, no link but lo has the node's address %s, and there is no default route", local)
}

func prefixLength(n *net.IPNet) int {
	if n == nil { // some kernels report the default route without a destination
		return 0
	}
	ones, _ := n.Mask.Size()
	return ones
}

// addressLink returns a Path with the MTU of the link that has the address. Without such a link, or for lo, the
// MTU is 0.
func (r *Routes) addressLink(local netip.Addr) (Path, error) {
	addrs, err := r.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return Path{}, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.Unmap() != local {
			continue
		}
		link, err := r.link(a.LinkIndex)
		if err != nil {
			return Path{}, err
		}
		if link.Attrs().Flags&net.FlagLoopback == 0 {
			return Path{MTU: link.Attrs().MTU}, nil
		}
	}
	return Path{}, nil
}

// UnderlayAddresses returns the addresses of the node's links and routers, sorted. weir's own links and routes
// don't count. If a route to pods covered such an address, the node would be cut off.
//
// Equivalent to: ip addr show; ip route show table all
func UnderlayAddresses(h netlinksafe.Handle) ([]claims.UnderlayAddress, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the node's links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	words := map[netip.Addr]string{}
	add := func(ip net.IP, link int, format string) {
		a, ok := netip.AddrFromSlice(ip)
		if name := names[link]; ok && !a.IsUnspecified() && name != conf.Bridge && name != conf.Tunnel {
			words[a.Unmap()] = fmt.Sprintf(format, name)
		}
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IP, a.LinkIndex, "this node's address on %s")
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		if route.Protocol == conf.RouteProtocol {
			continue
		}
		only := &netlink.NexthopInfo{LinkIndex: route.LinkIndex, Gw: route.Gw, Via: route.Via}
		hops := slices.Concat(route.MultiPath, []*netlink.NexthopInfo{only})
		for _, hop := range hops {
			// A next hop inside the destination is a tunnel's end, as in flannel's routes, and so no router.
			if prefixLength(route.Dst) > 0 && route.Dst.Contains(hop.Gw) {
				continue
			}
			add(hop.Gw, hop.LinkIndex, "a router of this node's on %s")
			if via, ok := hop.Via.(*netlink.Via); ok {
				add(via.Addr, hop.LinkIndex, "a router of this node's on %s")
			}
		}
	}
	own := make([]claims.UnderlayAddress, 0, len(words))
	for a, what := range words {
		own = append(own, claims.UnderlayAddress{Address: a, What: what})
	}
	slices.SortFunc(own, func(a, b claims.UnderlayAddress) int { return a.Address.Compare(b.Address) })
	return own, nil
}
