// Package conf owns weir's network configuration: its types, how the JSON that a runtime hands to the plugin is
// parsed, and every rule that it must satisfy before anything is touched. It is pure: it reads no file and asks no
// kernel. Beside it lie the conflist and manifests that people install.
package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// Enforcement says what ADD does with a pod that no agent has judged.
type Enforcement string

const (
	// Strict refuses the pod: no answer from the agent, no pod. The default.
	Strict Enforcement = "strict"
	// Closed lets the pod start and leaves its link down until the agent has put it into its class.
	Closed Enforcement = "closed"
	// Off makes the network only; no agent is asked and no policy is enforced on the pod.
	Off Enforcement = "off"
)

// NetConf is weir's part of a CNI network configuration.
type NetConf struct {
	types.NetConf
	// Ranges are the pools that addresses come from. A pod gets one address of each family that they hold; several of one
	// family are alternatives.
	Ranges []Range `json:"-"`
	// Routes that pods get; RoutesOf has all of a pod's.
	Routes []Route `json:"-"`
	// MTU of the pods' links in bytes. 0: that of the link with the node's default route.
	MTU         int         `json:"mtu,omitempty"`
	Enforcement Enforcement `json:"enforcement,omitempty"`

	wantedIPs []wanted[netip.Addr]
	wantedMAC wanted[net.HardwareAddr]
	identity  cniArgs
}

// knownKeys are what a configuration may hold: weir's own, and what the CNI specification 1.1, "Section 1" and the
// runtime's "cni.dev/" keys put beside them.
var knownKeys = []string{
	"cniVersion", "cniVersions", "name", "type", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
	"capabilities", "dns", "args", "runtimeConfig", "prevResult",
	"ranges", "routes", "mtu", "enforcement",
}

const (
	minMTU  = 68    // RFC 791: every module must forward 68 octets.
	minMTU6 = 1280  // RFC 8200, section 5: every link must carry that much; the kernel has no IPv6 on one that doesn't.
	maxMTU  = 65535 // the largest IPv4 packet.
)

// MTURange is from the least to the largest MTU of pods' links, in bytes; six: with an IPv6 address.
func MTURange(six bool) (least, largest int) {
	if six {
		return minMTU6, maxMTU
	}
	return minMTU, maxMTU
}

// Parse reads and validates stdin of a CNI call. Errors are *types.Error with code 6 (not JSON), 2 (a key is unknown) or 7
// (a key is missing or wrong); the message names the key and its value.
func Parse(data []byte) (*NetConf, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network configuration is no JSON object", err.Error())
	}
	if err := unknown("", raw, knownKeys); err != nil {
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
			return nil, types.NewError(types.ErrDecodingFailure, "prevResult can't be read", err.Error())
		}
	}
	return c, nil
}

func (c *NetConf) validate() error {
	if c.Name == "" {
		return types.NewError(types.ErrInvalidNetworkConfig, "name is missing", "a network configuration needs a name")
	}
	if err := disjoint(c.Ranges); err != nil {
		return err
	}
	if err := routesFit(c.Routes, c.Ranges); err != nil {
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

// unknown reports the first key that isn't in known. A key that the plugin doesn't know may be a typing error in one
// that matters, so it is refused; what runtimes add under "cni.dev/" passes.
func unknown(path string, raw map[string]json.RawMessage, known []string) error {
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
	return refuse(types.ErrUnsupportedField, path+keys[0], string(raw[keys[0]]), "is no key of weir's; known are "+strings.Join(known, ", "))
}

// invalid is CNI error code 7 for a key with a wrong value.
func invalid(key, value, why string) error {
	return refuse(types.ErrInvalidNetworkConfig, key, value, why)
}

func refuse(code uint, key, value, why string) error {
	if len(value) > 80 {
		value = value[:80] + "…"
	}
	return types.NewError(code, fmt.Sprintf("%s: %s %s", key, value, why), "")
}

// decodeError turns encoding/json's errors into one that names the key.
func decodeError(raw map[string]json.RawMessage, err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		key := strings.TrimPrefix(wrong.Field, "NetConf.") // as encoding/json names what is embedded
		top, _, _ := strings.Cut(key, ".")
		return invalid(key, string(raw[top]), "must be of type "+wrong.Type.String())
	}
	return types.NewError(types.ErrDecodingFailure, "the network configuration can't be read", err.Error())
}
