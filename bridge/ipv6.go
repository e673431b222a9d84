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

// noGeneratedAddress is the mode in which a link gets no link-local address (IN6_ADDR_GEN_MODE_NONE,
// include/uapi/linux/if_link.h). With none the kernel probes for no duplicate, which would hold up a pod for two seconds,
// asks for no router and, on weir0, tells no pod to speak to another directly: unlike IPv4's, redirects can't be switched off.
const addrGenModeNone = 1

// ensureIPv6 gives weir0, which is up, the gateways' IPv6 addresses, and sends what goes to their subnets there. The
// addresses are /128: with the subnet's prefix the node would answer to its first address too, which is any router's, and
// which the overlay has another use for. An address comes last, and says that all before it is done.
//
// Equivalent to:
//
//	sysctl net.ipv6.conf.all.forwarding=1
//	ip -6 route replace SUBNET dev weir0; ip addr add GATEWAY/128 dev weir0 nodad
func ensureIPv6(h netlinksafe.Handle, link netlink.Link, gateways []netip.Prefix) error {
	addrs, err := h.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list IPv6 addresses of %s: %w", Name, err)
	}
	has := map[string]bool{}
	for _, a := range addrs {
		has[a.IPNet.String()] = true
	}
	for _, gw := range gateways {
		if has[hostNet(gw.Addr()).String()] {
			continue
		}
		if err := forwardIPv6(h); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(gw.Masked())}
		if err := h.RouteReplace(route); err != nil {
			return explainNoIPv6(fmt.Errorf("add the route to %s on %s: %w", gw.Masked(), Name, err), "on the node")
		}
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: hostNet(gw.Addr()), Flags: unix.IFA_F_NODAD}); err != nil {
			return explainNoIPv6(fmt.Errorf("add gateway address %s to %s: %w", gw.Addr(), Name, err), "on the node")
		}
	}
	return nil
}

// forwardIPv6 makes the node a router that goes on listening to others (Listens).
//
//	sysctl net.ipv6.conf.UPLINK.accept_ra=2 net.ipv6.conf.all.forwarding=1
func forwardIPv6(h netlinksafe.Handle) error {
	o := &Observed{Links: map[string]Link{}, Sysctl: readSysctl}
	o.links, o.routes = o.readLinks(), o.readRoutes(h, netlink.FAMILY_V6)
	if err := (UplinksAcceptRA{}).restore(h, o); err != nil {
		return err
	}
	return explainNoIPv6(setAll(sysctlsIPv6()), "on the node")
}

// withoutIPv6 says what the kernel means by these errors.
func explainNoIPv6(err error, where string) error {
	for _, e := range []error{unix.EACCES, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, fs.ErrNotExist} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: IPv6 is switched off %s (sysctl net.ipv6.conf.all.disable_ipv6, or ipv6.disable on the kernel's command line), and there is an IPv6 range", err, where)
		}
	}
	return err
}

func explainNoIPv6InPod(err error) error { return explainNoIPv6(err, "in the pod") }

// ofFamily are the prefixes of the family.
func ofFamily(f conf.Family, prefixes []netip.Prefix) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range prefixes {
		if conf.FamilyOf(p.Addr()) == f {
			all = append(all, p)
		}
	}
	return all
}
