package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// RemoveUnasked keeps weir0 and the tunnel from IPv6 addresses and routes that nobody asked for: the kernel generates no
// link-local address, and believes no router's advertisement (RFC 4861, section 6.3.4). Then it takes away those that are
// there: all addresses of pods' ports, the link-local ones of weir0 and the tunnel, and on all of them those that came with
// an advertisement. An earlier weir let them come, and a route stays for as long as its router says.
//
// Equivalent to, for each such LINK:
//
//	ip link set LINK addrgenmode none; sysctl net.ipv6.conf.LINK.accept_ra=0          (weir0 and weir-vxlan)
//	ip -6 addr del ADDRESS dev LINK; ip -6 route flush dev LINK proto ra
func RemoveUnasked(h netlinksafe.Handle) error {
	if err := errors.Join(keepUnasked(h, Name), keepUnasked(h, conf.Tunnel)); err != nil {
		return err
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list IPv6 addresses: %w", err)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes from router advertisements: %w", err)
	}
	var errs []error
	links := map[int]netlink.Link{}
	ours := func(index int) netlink.Link {
		link, known := links[index]
		if !known && index != 0 {
			if found, err := h.LinkByIndex(index); err == nil && isOurs(found.Attrs().Name) { // else it is gone
				link = found
			}
			links[index] = link
		}
		return link
	}
	for _, a := range addrs {
		link := ours(a.LinkIndex)
		if link == nil || !unasked(link.Attrs().Name, a) {
			continue
		}
		if err := noAddressOf(h, link); err != nil {
			errs = append(errs, err)
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete address %s of %s: %w", a.IPNet, link.Attrs().Name, err))
		}
	}
	for _, r := range routes {
		link := ours(r.LinkIndex)
		if link == nil {
			continue
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete the route to %s that a router advertised on %s: %w", r.Dst, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// keepUnasked does nothing where there is no such link, or no IPv6 on it.
func keepUnasked(h netlinksafe.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if err := noAddressOf(h, link); err != nil {
		return err
	}
	err = setSysctl("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", "0")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func noAddressOf(h netlinksafe.Handle, link netlink.Link) error {
	err := h.LinkSetIP6AddrGenMode(link, noGeneratedAddress)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("keep %s from a link-local address: %w", link.Attrs().Name, err)
	}
	return nil
}

func isOurs(name string) bool {
	return name == Name || name == conf.Tunnel || strings.HasPrefix(name, PortPrefix)
}

// unasked says whether nobody asked for the address. What came with an advertisement isn't permanent (linux/if_addr.h).
func unasked(link string, a netlink.Addr) bool {
	return strings.HasPrefix(link, PortPrefix) || a.IP.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_PERMANENT == 0
}
