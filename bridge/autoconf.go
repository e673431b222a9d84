package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// RemoveAutoconfigured removes the IPv6 addresses and routes that the kernel made by itself on weir's links. It also
// stops the kernel from making more on weir0 and the tunnel. Earlier versions of weir didn't stop the kernel.
//
// Equivalent to, for each LINK of weir:
//
//	ip link set LINK addrgenmode none; sysctl net.ipv6.conf.LINK.accept_ra=0          (weir0 and weir-vxlan)
//	ip -6 addr del ADDRESS dev LINK; ip -6 route flush dev LINK proto ra
func RemoveAutoconfigured(h netlinksafe.Handle) error {
	if err := errors.Join(disableAutoconf(h, Name), disableAutoconf(h, conf.Tunnel)); err != nil {
		return err
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list IPv6 addresses: %w", err)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA},
		netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes from router advertisements: %w", err)
	}
	var errs []error
	links := map[int]netlink.Link{}
	weirLink := func(index int) netlink.Link { // nil if the link doesn't belong to weir, or is gone
		link, known := links[index]
		if !known && index != 0 {
			if l, err := h.LinkByIndex(index); err == nil && isWeirLink(l.Attrs().Name) {
				link = l
			}
			links[index] = link
		}
		return link
	}
	for _, a := range addrs {
		link := weirLink(a.LinkIndex)
		if link == nil || !isAutoconfigured(link.Attrs().Name, a) {
			continue
		}
		if err := disableLinkLocal(h, link); err != nil {
			errs = append(errs, err)
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete address %s of %s: %w", a.IPNet, link.Attrs().Name, err))
		}
	}
	for _, r := range routes {
		link := weirLink(r.LinkIndex)
		if link == nil {
			continue
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete the route to %s that a router advertised on %s: %w",
				r.Dst, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func disableAutoconf(h netlinksafe.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if err := disableLinkLocal(h, link); err != nil {
		return err
	}
	err = writeSysctl("net/ipv6/conf/"+name+"/accept_ra", "0")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func disableLinkLocal(h netlinksafe.Handle, link netlink.Link) error {
	mode, err := readSysctl("net/ipv6/conf/" + link.Attrs().Name + "/addr_gen_mode")
	if err == nil && mode == strconv.Itoa(addrGenModeNone) {
		return nil
	}
	err = h.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("keep %s from a link-local address: %w", link.Attrs().Name, err)
	}
	return nil
}

func isWeirLink(name string) bool {
	return name == Name || name == conf.Tunnel || strings.HasPrefix(name, PortPrefix)
}

// isAutoconfigured reports whether the kernel has given weir's link this address. weir gives its links only permanent
// addresses that aren't link-local, and gives pods' ports no addresses at all. Addresses from router advertisements
// aren't permanent (linux/if_addr.h).
func isAutoconfigured(link string, a netlink.Addr) bool {
	return strings.HasPrefix(link, PortPrefix) || a.IP.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_PERMANENT == 0
}

// noLinkLocalAddress is the property that the kernel makes no link-local address for the link.
type noLinkLocalAddress struct{ Link string }

// Kind is KindSysctl, because the kernel shows the setting as the sysctl addr_gen_mode.
func (noLinkLocalAddress) Kind() Kind { return KindSysctl }

func (g noLinkLocalAddress) String() string {
	return "the kernel gives " + g.Link + " no link-local address"
}

// Command returns the command that changes the setting. The command removes no address that the link already has.
func (g noLinkLocalAddress) Command() string { return "ip link set " + g.Link + " addrgenmode none" }

// Check reads the sysctl addr_gen_mode. It returns nil if the link is missing or has no IPv6.
func (g noLinkLocalAddress) Check(o *Observed) error {
	return sysctl{
		Key: "net/ipv6/conf/" + g.Link + "/addr_gen_mode", Value: strconv.Itoa(addrGenModeNone), Link: g.Link, IfThere: true,
	}.Check(o)
}

func (g noLinkLocalAddress) restore(h netlinksafe.Handle, _ *Observed) error {
	link, err := h.LinkByName(g.Link)
	if err != nil {
		return fmt.Errorf("look up %s: %w", g.Link, err)
	}
	return disableLinkLocal(h, link)
}

// noAutoconfigured is the property that weir's links have no IPv6 addresses or routes that the kernel made by itself.
// RemoveAutoconfigured removes these.
type noAutoconfigured struct{}

// Kind is KindAddress, even if only a route is wrong.
func (noAutoconfigured) Kind() Kind { return KindAddress }

func (noAutoconfigured) String() string {
	return "weir's links have no IPv6 addresses or routes that weir didn't set"
}

// Command returns the command for the usual case: it deletes weir0's link-local addresses. The repair also deletes
// other addresses, and routes.
func (noAutoconfigured) Command() string { return "ip -6 addr flush dev " + Name + " scope link" }

// Check names each autoconfigured IPv6 address and route of weir's links.
func (noAutoconfigured) Check(o *Observed) error {
	if err := errors.Join(o.links, o.addresses, o.routes); err != nil {
		return fmt.Errorf("IPv6 addresses of weir's links: %w: %w", errUnknown, err)
	}
	var wrong []string
	for name, l := range o.Links {
		if !isWeirLink(name) {
			continue
		}
		for _, a := range o.Addresses[l.Index] {
			if !a.Addr().Is6() {
				continue
			}
			if strings.HasPrefix(name, PortPrefix) || a.Addr().IsLinkLocalUnicast() || o.Learned[a.Addr()] {
				wrong = append(wrong, fmt.Sprintf("%s has the address %s", name, a))
			}
		}
		for _, r := range o.Routes {
			if r.Link == l.Index && r.Protocol == unix.RTPROT_RA {
				wrong = append(wrong, fmt.Sprintf("a router has advertised a route to %s on %s", r.Dst, name))
			}
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return errors.New(strings.Join(wrong, ", "))
	}
	return nil
}

func (noAutoconfigured) restore(h netlinksafe.Handle, _ *Observed) error {
	return RemoveAutoconfigured(h)
}
