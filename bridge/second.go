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

// ErrRouteExists means that a route of the configuration exists already in the pod, through another interface.
var ErrRouteExists = errors.New("the pod has such a route out of another interface")

// firstSecondaryTable plus the index of the link is the number of a second interface's routing table.
const firstSecondaryTable = 88_000

type existingRoutes map[netip.Prefix]bool

// tolerate returns a function for Step.MapError. If another interface has the route r, or the route to r's gateway,
// the function adds r's destination to t and returns nil.
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

// refuse returns a function for Step.MapError. The function returns ErrRouteExists if another interface has the
// route r, or the route to r's gateway.
func (t existingRoutes) refuse(r conf.Route) func(error) error {
	return func(err error) error {
		byAnother := r.Gateway.IsValid() && t[netip.PrefixFrom(r.Gateway, r.Gateway.BitLen())]
		if errors.Is(err, unix.EEXIST) || byAnother && errors.Is(err, unix.ENETUNREACH) {
			return ErrRouteExists
		}
		return err
	}
}

func hasDefault(given []conf.Route, a endpoint.Address) bool {
	return slices.ContainsFunc(given, func(r conf.Route) bool {
		return r.IsDefault() && r.Dst.Addr().Is4() == a.Addr.Is4()
	})
}

// addSecondaryRoutes returns all routes that the interface has or gets. If the pod's default route already leads out
// of another interface, this is a second interface, as Multus adds them, and addSecondaryRoutes adds the routes that
// it needs. Instead of a default route, a second interface gets a route to its own network. It also gets a table with
// a default route for packets from its own address, because the guard allows this address on no other port.
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
			rule := pod.Add(addRule(a.Addr, table), "add the rule that packets from %s use table %d in the pod",
				a.Addr, table)
			rule.MapError = batch.MapError(unix.EEXIST, nil)
			routes = append(routes, byAddress)
			if toGateway := netip.PrefixFrom(a.Gateway, a.Gateway.BitLen()); existing[toGateway] {
				continue // the pod already has a route to this network by another interface
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
	m.Table, m.Protocol = unix.RT_TABLE_UNSPEC, unix.RTPROT_UNSPEC
	m.Scope, m.Type = unix.RT_SCOPE_UNIVERSE, nl.FR_ACT_TO_TBL
	return request(unix.RTM_NEWRULE, ifNew, m, attr(nl.FRA_SRC, from.AsSlice()), number(nl.FRA_TABLE, table))
}
