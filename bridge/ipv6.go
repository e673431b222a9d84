package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// addrGenModeNone means that the kernel makes no link-local address for a link (IN6_ADDR_GEN_MODE_NONE). The kernel
// then sends no redirects from weir0 and solicits no router. It also doesn't search for duplicates of a link-local
// address. This search would delay a pod by two seconds.
const addrGenModeNone = 1

// ensureIPv6 gives weir0 addresses with /128. With the subnet's prefix length, the node would also answer for the
// subnet's first address, which belongs to the tunnel.
//
// Equivalent to:
//
//	sysctl net.ipv6.conf.all.forwarding=1
//	ip -6 route append SUBNET dev weir0; ip addr add GATEWAY/128 dev weir0 nodad
func ensureIPv6(h netlinksafe.Handle, link netlink.Link, gateways []netip.Prefix) error {
	addrs, err := h.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list IPv6 addresses of %s: %w", Name, err)
	}
	for _, gw := range gateways {
		if hasAddress(addrs, hostNet(gw.Addr())) {
			continue
		}
		if err := forwardIPv6(h); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(gw.Masked())}
		if err := appendRoute(h, route); err != nil {
			return err
		}
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: hostNet(gw.Addr()), Flags: unix.IFA_F_NODAD}); err != nil {
			return explainNoIPv6(fmt.Errorf("add gateway address %s to %s: %w", gw.Addr(), Name, err), "on the node")
		}
	}
	return nil
}

// forwardIPv6 makes the node a router. A router accepts router advertisements only on links with accept_ra 2, so
// forwardIPv6 first sets accept_ra on the links that need it (see uplinksAcceptRA).
//
// Equivalent to: sysctl net.ipv6.conf.UPLINK.accept_ra=2 net.ipv6.conf.all.forwarding=1
func forwardIPv6(h netlinksafe.Handle) error {
	o := nothingObserved()
	defer o.Close()
	o.links, o.routes = o.readLinks(), o.readRoutes(unix.AF_INET6)
	if err := (uplinksAcceptRA{}).restore(h, o); err != nil {
		return err
	}
	return explainNoIPv6(setAll(sysctlsIPv6()), "on the node")
}

func explainNoIPv6(err error, where string) error {
	for _, e := range []error{unix.EACCES, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, fs.ErrNotExist} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: IPv6 is switched off %s (sysctl net.ipv6.conf.all.disable_ipv6, or ipv6.disable on the "+
				"kernel's command line), and there is an IPv6 range", err, where)
		}
	}
	return err
}

func explainNoIPv6InPod(err error) error { return explainNoIPv6(err, "in the pod") }

func ofFamily(f conf.Family, prefixes []netip.Prefix) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range prefixes {
		if conf.FamilyOf(p.Addr()) == f {
			all = append(all, p)
		}
	}
	return all
}
