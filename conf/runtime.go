package conf

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// runtimeConfig has the values that a runtime passes for the conflist's capabilities (CNI's CONVENTIONS.md, "Dynamic
// Plugin specific fields"). weir leaves portMappings and bandwidth to the plugins after it.
type runtimeConfig struct {
	IPs      []string            `json:"ips"`
	MAC      string              `json:"mac"`
	IPRanges [][]json.RawMessage `json:"ipRanges"`
	DNS      *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
}

// cniArgs is "args.cni" of the configuration. weir uses Labels only to identify the pod, and not to match policies.
type cniArgs struct {
	IPs       []string        `json:"ips"`
	MAC       string          `json:"mac"`
	Labels    json.RawMessage `json:"labels"`
	Namespace string          `json:"K8S_POD_NAMESPACE"`
	Name      string          `json:"K8S_POD_NAME"`
	UID       string          `json:"K8S_POD_UID"`
}

type requested[T any] struct {
	key   string
	value T
}

func (c *NetConf) parseRuntime(raw map[string]json.RawMessage) error {
	var rt runtimeConfig
	if err := decode("runtimeConfig", raw["runtimeConfig"], &rt); err != nil {
		return err
	}
	var args struct {
		CNI cniArgs `json:"cni"`
	}
	if err := decode("args", raw["args"], &args); err != nil {
		return err
	}
	c.identity = args.CNI
	if len(rt.IPRanges) > 0 {
		c.Ranges = nil
		for i, set := range rt.IPRanges {
			ranges, err := parseRanges(fmt.Sprintf("runtimeConfig.ipRanges[%d]", i), set)
			if err != nil {
				return err
			}
			c.Ranges = append(c.Ranges, ranges...)
		}
	}
	for _, list := range []requested[[]string]{{"args.cni.ips", args.CNI.IPs}, {"runtimeConfig.ips", rt.IPs}} {
		for i, s := range list.value {
			key := fmt.Sprintf("%s[%d]", list.key, i)
			a, ok := parseAddress(s)
			if !ok {
				return invalid(key, fmt.Sprintf("%q", s), "is no IP address")
			}
			c.requestedIPs = append(c.requestedIPs, requested[netip.Addr]{key, a})
		}
	}
	for _, m := range []requested[string]{{"args.cni.mac", args.CNI.MAC}, {"runtimeConfig.mac", rt.MAC}} {
		if m.value == "" {
			continue
		}
		mac, ok := parseMAC(m.value)
		if !ok {
			return invalid(m.key, fmt.Sprintf("%q", m.value), "is no MAC address that one host can have")
		}
		c.requestedMAC = requested[net.HardwareAddr]{m.key, mac}
	}
	if rt.DNS != nil {
		for _, f := range []struct {
			given []string
			into  *[]string
		}{{rt.DNS.Servers, &c.DNS.Nameservers}, {rt.DNS.Searches, &c.DNS.Search}, {rt.DNS.Options, &c.DNS.Options}} {
			if len(f.given) > 0 {
				*f.into = f.given
			}
		}
	}
	return nil
}

// Addresses returns the addresses that the runtime requests for the pod, at most one of each family. It returns an
// error if two different addresses of one family are requested, or an address that no range can assign.
func (c *NetConf) Addresses(args Args) ([]netip.Addr, error) {
	all := slices.Clone(c.requestedIPs)
	for _, a := range args.IPs {
		all = append(all, requested[netip.Addr]{"CNI_ARGS: IP", a})
	}
	var addrs []netip.Addr
	from := map[Family]requested[netip.Addr]{}
	for _, w := range all {
		f := FamilyOf(w.value)
		if other, ok := from[f]; ok {
			if other.value != w.value {
				return nil, invalid(w.key, w.value.String(),
					fmt.Sprintf("and %s %s: a pod has one %s address", other.key, other.value, f))
			}
			continue
		}
		if !slices.ContainsFunc(c.Ranges, func(r Range) bool { return r.CanAssign(w.value) }) {
			return nil, invalid(w.key, w.value.String(), "is in no range, or a gateway, or excluded: "+describe(c.Ranges))
		}
		from[f], addrs = w, append(addrs, w.value)
	}
	return addrs, nil
}

// HardwareAddr returns the MAC that the runtime requests for the pod; nil if it requests none. runtimeConfig has
// precedence over args.cni, and args.cni over CNI_ARGS.
func (c *NetConf) HardwareAddr(args Args) net.HardwareAddr {
	if c.requestedMAC.value != nil {
		return c.requestedMAC.value
	}
	return args.MAC
}

func decode(key string, data json.RawMessage, into any) error {
	if data == nil {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return invalid(key, string(data), err.Error())
	}
	return nil
}

func parseAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = p.Addr()
	}
	return a.Unmap(), a.Zone() == ""
}

// parseMAC reads the MAC of a single host: 48 bits, not all zero, and no group address (IEEE 802).
func parseMAC(s string) (net.HardwareAddr, bool) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return nil, false
	}
	return mac, true
}

func describe(ranges []Range) string {
	all := make([]string, len(ranges))
	for i, r := range ranges {
		all[i] = r.String()
	}
	return strings.Join(all, ", ")
}

func (c *NetConf) checkChained() error {
	for _, k := range []struct {
		key string
		set bool
	}{{"ranges", len(c.Ranges) > 0}, {"routes", len(c.Routes) > 0}, {"mtu", c.MTU != 0}} {
		if k.set {
			return &Error{Kind: WrongValue, Message: k.key + ": weir comes after another plugin in the list (there is a " +
				"prevResult) and only enforces policy there: leave " + k.key + " out, or put weir first"}
		}
	}
	return nil
}

// ForAdd checks the keys that depend on whether weir makes the interface. chained is true if there is a prevResult:
// then another plugin has made the interface, and ranges, routes and mtu must be absent. Otherwise ranges must be
// there.
func (c *NetConf) ForAdd() (chained bool, err error) {
	if c.PrevResult != nil {
		return true, c.checkChained()
	}
	if len(c.Ranges) == 0 {
		return false, missing("ranges", `at least one range is needed, for instance [{"subnet": "10.88.0.0/24"}], `+
			`unless weir stands behind the plugin that makes the interface`)
	}
	return false, nil
}
