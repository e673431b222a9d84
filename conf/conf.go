// Package conf owns weir's network configuration: its types, the parser, and the checks that it must pass before the
// plugin changes anything. It also has the names of kernel objects that the plugin and the agent share. The folder also
// has the manifests that people install.
//
// Invariants:
//   - The package reads no file and doesn't call the kernel.
//   - Parse accepts no unknown key and no wrong value. The same configuration always gives the same error.
//   - An error about a call is an *Error and has no CNI code: plugins/weir chooses the code by the error's kind.
//   - Only this package derives a set's purpose from the set's name. If the purpose of one of weir's sets is unknown,
//     the set counts as one that may have pods.
package conf

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// Enforcement says whether policies are enforced on a pod, and what ADD does if the agent doesn't answer.
type Enforcement string

const (
	// Strict fails ADD: without the agent's answer there is no pod. It is the default.
	Strict Enforcement = "strict"
	// Closed lets the pod start, but without connections until the agent has enrolled the pod (enforces policies on it).
	Closed Enforcement = "closed"
	// Off makes only the network: ADD asks no agent, and no policy is enforced on the pod.
	Off Enforcement = "off"
)

// NetConf is the network configuration that a runtime passes to the plugin: CNI's own keys, and weir's.
type NetConf struct {
	types.NetConf
	// Ranges are the ranges to assign addresses from. A pod gets one address of each family that has a range.
	Ranges []Range `json:"-"`
	// Routes are the routes that pods get. If Routes has no default route, RoutesOf adds one.
	Routes []Route `json:"-"`
	// MTU is the MTU of the pods' links in bytes. 0 means weir0's MTU. A new weir0 gets the MTU of the link with the
	// node's default route.
	MTU         int         `json:"mtu,omitempty"`
	Enforcement Enforcement `json:"enforcement,omitempty"`

	requestedIPs []requested[netip.Addr]
	requestedMAC requested[net.HardwareAddr]
	identity     cniArgs
}

var knownKeys = []string{
	"cniVersion", "cniVersions", "name", "type", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
	"capabilities", "dns", "args", "runtimeConfig", "prevResult",
	"ranges", "routes", "mtu", "enforcement",
}

const (
	minMTU  = 68    // RFC 791: each router must forward packets of 68 bytes
	minMTU6 = 1280  // RFC 8200, section 5: a smaller MTU switches IPv6 off on the link
	maxMTU  = 65535 // the length of the longest IPv4 packet
)

// MTURange returns the least and the largest MTU of pods' links, in bytes. The parameter six is true if the
// pods have IPv6 addresses.
func MTURange(six bool) (least, largest int) {
	if six {
		return minMTU6, maxMTU
	}
	return minMTU, maxMTU
}

// Parse reads and validates the network configuration of a CNI call. Its errors are *Error. If an error is about a
// key, its message begins with the key's name.
func Parse(data []byte) (*NetConf, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, notDecoded("the network configuration is no JSON object", err)
	}
	if err := checkKeys("", raw, knownKeys); err != nil {
		return nil, err
	}
	c := &NetConf{}
	if data, ok := raw["ranges"]; ok {
		var list []json.RawMessage
		err := json.Unmarshal(data, &list)
		if err != nil {
			return nil, invalid("ranges", string(data), "must be a list of objects")
		}
		if c.Ranges, err = parseRanges("ranges", list); err != nil {
			return nil, err
		}
	}
	if routes, ok := raw["routes"]; ok {
		var err error
		if c.Routes, err = parseRoutes(routes); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, decodeError(raw, err)
	}
	if err := c.parseRuntime(raw); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.RawPrevResult != nil {
		if err := version.ParsePrevResult(&c.NetConf); err != nil {
			return nil, notDecoded("prevResult can't be read", err)
		}
	}
	return c, nil
}

func (c *NetConf) validate() error {
	if c.Name == "" {
		return missing("name", "a network configuration needs a name")
	}
	if err := checkDisjoint(c.Ranges); err != nil {
		return err
	}
	if err := checkRoutes(c.Routes, c.Ranges); err != nil {
		return err
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return invalid("mtu", fmt.Sprint(c.MTU), fmt.Sprintf("must be 0 or from %d to %d", minMTU, maxMTU))
	}
	six := slices.ContainsFunc(c.Ranges, func(r Range) bool { return FamilyOf(r.Gateway) == IPv6 })
	if six && c.MTU != 0 && c.MTU < minMTU6 {
		return invalid("mtu", fmt.Sprint(c.MTU), fmt.Sprintf("must be 0 or at least %d with an IPv6 range", minMTU6))
	}
	switch c.Enforcement {
	case "":
		c.Enforcement = Strict
	case Strict, Closed, Off:
	default:
		return invalid("enforcement", string(c.Enforcement), "must be strict, closed or off")
	}
	return nil
}

func checkKeys(path string, raw map[string]json.RawMessage, known []string) error {
	var keys []string
	for k := range raw {
		if !slices.Contains(known, k) && !strings.HasPrefix(k, "cni.dev/") {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	return keyError(UnknownKey, path+keys[0], string(raw[keys[0]]),
		"is no key of weir's; known are "+strings.Join(known, ", "))
}
