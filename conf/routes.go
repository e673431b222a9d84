package conf

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Route is a configured route of a pod (CNI specification 1.1, "Success": routes).
type Route struct {
	Dst netip.Prefix `json:"dst"`
	// Gateway is invalid if the configuration gives none. A gateway in the configuration must be the gateway of the
	// pod's range, because a pod reaches no other host on its link.
	Gateway  netip.Addr `json:"gw,omitzero"`
	MTU      int        `json:"mtu,omitempty"`
	AdvMSS   int        `json:"advmss,omitempty"`
	Priority int        `json:"priority,omitempty"`
	Table    *int       `json:"table,omitempty"`
	// Scope is ScopeGlobal (via the gateway) or ScopeLink (without a gateway). nil means ScopeGlobal.
	Scope *int `json:"scope,omitempty"`
}

// Scopes of routes, and the number of the main routing table (rtnetlink(7)).
const (
	ScopeGlobal = 0
	ScopeLink   = 253
	mainTable   = 254
)

var knownRouteKeys = []string{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}

// IsDefault reports whether the route replaces the default route of its family.
func (r Route) IsDefault() bool { return r.Dst.Bits() == 0 && r.TableID() == mainTable && !r.OnLink() }

// OnLink reports whether the route's scope is ScopeLink. Such a route has no gateway.
func (r Route) OnLink() bool { return r.Scope != nil && *r.Scope == ScopeLink }

// TableID returns the number of the route's table. The default is the main table.
func (r Route) TableID() int {
	if r.Table == nil || *r.Table == 0 {
		return mainTable
	}
	return *r.Table
}

func parseRoutes(data json.RawMessage) ([]Route, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, invalid("routes", string(data), "must be a list of objects")
	}
	var routes []Route
	for i, item := range list {
		path := fmt.Sprintf("routes[%d]", i)
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(item, &fields); err != nil {
			return nil, invalid(path, string(item), "must be an object with a dst")
		}
		if err := checkKeys(path+".", fields, knownRouteKeys); err != nil {
			return nil, err
		}
		var r Route
		for _, f := range []struct {
			key, kind string
			into      any
		}{
			{"dst", "CIDR", &r.Dst},
			{"gw", "IP address", &r.Gateway},
			{"mtu", "number", &r.MTU},
			{"advmss", "number", &r.AdvMSS},
			{"priority", "number", &r.Priority},
			{"table", "number", &r.Table},
			{"scope", "number", &r.Scope},
		} {
			if v, ok := fields[f.key]; ok {
				if err := json.Unmarshal(v, f.into); err != nil {
					return nil, invalid(path+"."+f.key, string(v), "is no "+f.kind)
				}
			}
		}
		if err := r.validate(path); err != nil {
			return nil, err
		}
		routes = append(routes, r)
	}
	return routes, nil
}

func (r Route) validate(path string) error {
	if !r.Dst.IsValid() {
		return missing(path+".dst", "each route needs a dst, for instance 10.0.0.0/8")
	}
	if r.Dst != r.Dst.Masked() || r.Dst.Addr().Is4In6() {
		network := netip.PrefixFrom(r.Dst.Masked().Addr().Unmap(), r.Dst.Bits())
		return invalid(path+".dst", r.Dst.String(), "has host bits set; did you mean "+network.String()+"?")
	}
	type number struct {
		key      string
		value    int
		min, max int
	}
	numbers := []number{{"priority", r.Priority, 0, math.MaxUint32}, {"advmss", r.AdvMSS, 0, maxMTU}}
	if r.MTU != 0 {
		numbers = append(numbers, number{"mtu", r.MTU, minMTU, maxMTU})
	}
	if r.Table != nil {
		numbers = append(numbers, number{"table", *r.Table, 0, math.MaxUint32})
	}
	for _, n := range numbers {
		if n.value < n.min || n.value > n.max {
			return invalid(path+"."+n.key, fmt.Sprint(n.value), fmt.Sprintf("must be from %d to %d", n.min, n.max))
		}
	}
	if s := r.Scope; s != nil && *s != ScopeGlobal && *s != ScopeLink {
		return invalid(path+".scope", fmt.Sprint(*s),
			fmt.Sprintf("must be %d (via the gateway) or %d (on the link)", ScopeGlobal, ScopeLink))
	}
	if r.OnLink() && r.Gateway.IsValid() {
		return invalid(path+".gw", r.Gateway.String(), "can't be with scope 253, which is on the link")
	}
	return nil
}

// checkRoutes returns an error if a route doesn't fit the ranges or another route. If there are ranges, each route's
// family must have a range. A given gateway must be the only gateway of the family's ranges. No two routes may have the
// same destination, table and priority.
func checkRoutes(routes []Route, ranges []Range) error {
	for i, r := range routes {
		path := fmt.Sprintf("routes[%d]", i)
		family := FamilyOf(r.Dst.Addr())
		var gateways []string
		for _, of := range ranges {
			if g := of.Gateway.String(); FamilyOf(of.Gateway) == family && !slices.Contains(gateways, g) {
				gateways = append(gateways, g)
			}
		}
		if len(ranges) > 0 && len(gateways) == 0 {
			return invalid(path+".dst", r.Dst.String(), fmt.Sprintf("is %s, and there is no range of that family", family))
		}
		if r.Gateway.IsValid() && (len(gateways) != 1 || gateways[0] != r.Gateway.String()) {
			return invalid(path+".gw", r.Gateway.String(), "can't be reached: the only host on a pod's link is the gateway "+
				"of its range, which is "+strings.Join(gateways, " or ")+"; leave gw out")
		}
		for j, o := range routes[:i] {
			if r.Dst == o.Dst && r.TableID() == o.TableID() && r.Priority == o.Priority {
				return invalid(path+".dst", r.Dst.String(),
					fmt.Sprintf("is that of routes[%d], in the same table and with the same priority", j))
			}
		}
	}
	return nil
}

// RoutesOf returns a pod's routes of the family: the given routes of this family, and a default route unless one of
// the given routes is a default route. A route without ScopeLink gets the parameter gateway as its gateway.
func RoutesOf(given []Route, family Family, gateway netip.Addr) []Route {
	var routes []Route
	for _, r := range given {
		if FamilyOf(r.Dst.Addr()) != family {
			continue
		}
		if !r.OnLink() {
			r.Gateway = gateway
		}
		routes = append(routes, r)
	}
	if !slices.ContainsFunc(routes, Route.IsDefault) {
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == IPv6 {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes = append([]Route{{Dst: everything, Gateway: gateway}}, routes...)
	}
	return routes
}
