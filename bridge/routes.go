package bridge

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

// checkRoutes returns an error that names the routes that the pod's interface lacks. A route may be in any table,
// because another plugin, such as sbr, may have moved it to another table.
func checkRoutes(pod netlinksafe.Handle, index int, routes []conf.Route) error {
	var errs []error
	for _, r := range routes {
		inAnyTable := &netlink.Route{LinkIndex: index, Table: unix.RT_TABLE_UNSPEC}
		have, err := pod.RouteListFiltered(int(familyOf(r.Dst.Addr())), inAnyTable,
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("routes in the pod: %w", err)
		}
		switch {
		case slices.ContainsFunc(have, func(h netlink.Route) bool { return matchesRoute(h, r) }):
		case r.IsDefault():
			errs = append(errs, fmt.Errorf("the pod lacks the default route via %s", r.Gateway))
		default:
			errs = append(errs, fmt.Errorf("the pod lacks the route to %s, or has it with other values", r.Dst))
		}
	}
	return errors.Join(errs...)
}

// matchesRoute compares MTU, AdvMSS and priority only if r has them.
func matchesRoute(have netlink.Route, r conf.Route) bool {
	dst := netip.PrefixFrom(r.Dst.Addr(), 0).Masked() // the kernel may leave out the destination of a default route
	if have.Dst != nil {
		addr, _ := netip.AddrFromSlice(have.Dst.IP)
		ones, _ := have.Dst.Mask.Size()
		dst = netip.PrefixFrom(addr.Unmap(), ones)
	}
	set := func(want, have int) bool { return want == 0 || want == have }
	return dst == r.Dst && have.Gw.Equal(net.IP(r.Gateway.AsSlice())) &&
		set(r.MTU, have.MTU) && set(r.AdvMSS, have.AdvMSS) && set(r.Priority, have.Priority)
}
