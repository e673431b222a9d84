package bridge

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/batch"
)

// ErrRouteExists says that the pod has such a route already, out of another interface.
var ErrRouteExists = errors.New("the pod has such a route out of another interface")

// asideTable and the number of the pod's link give the table that has the default route of a second interface.
const firstSecondaryTable = 88_000

// taken are the routes that the pod has already, out of another interface.
type existingRoutes map[netip.Prefix]bool

// note has the kernel's answer that the route is there already mean that.
func (t existingRoutes) tolerate(r conf.Route) func(error) error {
	exists := t.refuse(r)
	return func(err error) error {
		if err = exists(err); errors.Is(err, ErrRouteExists) {
			t[r.Dst] = true
			return nil
		}
		return err
	}
}

// exists has it mean ErrRouteExists. Where the way to the gateway leads out of another interface already, the kernel
// calls the gateway unreachable.
func (t existingRoutes) refuse(r conf.Route) func(error) error {
	return func(err error) error {
		byAnother := r.Gateway.IsValid() && t[netip.PrefixFrom(r.Gateway, r.Gateway.BitLen())]
		if errors.Is(err, unix.EEXIST) || byAnother && errors.Is(err, unix.ENETUNREACH) {
			return ErrRouteExists
		}
		return err
	}
}

// hasDefault says whether a default route of the address's family is among those given.
func hasDefault(given []conf.Route, a endpoint.Address) bool {
	return slices.ContainsFunc(given, func(r conf.Route) bool { return r.IsDefault() && r.Dst.Addr().Is4() == a.Addr.Is4() })
}

// aside are the routes of a pod whose default route leads out of another interface already, as of one that Multus
// attaches a second time. Its main table gets the way to the interface's own network instead, and what the pod sends
// under the interface's address, answers to what came in by it for the most part, leaves by the interface: under that
// address the guard lets no other port send.
//
// Equivalent to, in the pod:
//
//	ip route add SUBNET via GATEWAY dev IFNAME
//	ip route add default via GATEWAY dev IFNAME onlink table TABLE
//	ip rule add from ADDR table TABLE
func (p Port) addSecondaryRoutes(index int, existing existingRoutes) (routes []conf.Route, err error) {
	var pod batch.Batch
	for _, a := range p.Addresses {
		family := conf.FamilyOf(a.Addr)
		for _, r := range conf.RoutesOf(p.Routes, family, a.Gateway) {
			if !r.IsDefault() || hasDefault(p.Routes, a) || !existing[r.Dst] {
				routes = append(routes, r)
				continue
			}
			table := firstSecondaryTable + index
			byAddress := conf.Route{Dst: r.Dst, Gateway: a.Gateway, Table: &table}
			request := addRoute(index, byAddress)
			pod.Add(onLink(request), "add the route to %s via %s to table %d in the pod", r.Dst, a.Gateway, table)
			rule := pod.Add(addRule(a.Addr, table), "have table %d asked for what the pod sends as %s", table, a.Addr)
			rule.MapError = batch.MapError(unix.EEXIST, nil)
			routes = append(routes, byAddress)
			if toGateway := netip.PrefixFrom(a.Gateway, a.Gateway.BitLen()); existing[toGateway] {
				continue // another interface in the same network has that way
			}
			network := conf.Route{Dst: a.Subnet.Masked(), Gateway: a.Gateway}
			route := pod.Add(addRoute(index, network), "add the route to %s via %s in the pod", network.Dst, a.Gateway)
			route.MapError = batch.MapError(unix.EEXIST, nil)
			routes = append(routes, network)
		}
	}
	_, err = pod.Do(unix.NETLINK_ROUTE, p.Netns)
	return routes, err
}

// onLink has the kernel believe that the gateway of the route is on the link.
func onLink(r *nl.NetlinkRequest) *nl.NetlinkRequest {
	for _, part := range r.Data {
		if m, ok := part.(*nl.RtMsg); ok {
			m.Flags |= unix.RTNH_F_ONLINK
		}
	}
	return r
}

// Equivalent to: ip rule add from ADDR table TABLE
func addRule(from netip.Addr, table int) *nl.NetlinkRequest {
	m := nl.NewRtMsg() // a struct fib_rule_hdr has the same fields (linux/fib_rules.h)
	m.Family, m.Src_len = familyOf(from), uint8(from.BitLen())
	m.Table, m.Protocol, m.Scope, m.Type = unix.RT_TABLE_UNSPEC, unix.RTPROT_UNSPEC, unix.RT_SCOPE_UNIVERSE, nl.FR_ACT_TO_TBL
	return request(unix.RTM_NEWRULE, ifNew, m, attr(nl.FRA_SRC, from.AsSlice()), number(nl.FRA_TABLE, table))
}
