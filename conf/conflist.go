package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Network is the name of the network in Conflist.
const Network = "weir"

// Conflist returns the network configuration list that the agent writes for the node's runtime: weir, with the
// node's networks as ranges, and portmap for hostPort.
func Conflist(networks []netip.Prefix, mtu int, enforcement Enforcement) ([]byte, error) {
	type subnet struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	type plugin struct {
		Type         string          `json:"type"`
		Ranges       []subnet        `json:"ranges,omitempty"`
		MTU          int             `json:"mtu,omitempty"`
		Enforcement  Enforcement     `json:"enforcement,omitempty"`
		Capabilities map[string]bool `json:"capabilities,omitempty"`
	}
	weir := plugin{Type: "weir", MTU: mtu, Enforcement: enforcement}
	for _, n := range networks {
		weir.Ranges = append(weir.Ranges, subnet{n})
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{
		"1.0.0",
		[]string{"1.0.0", "1.1.0"},
		Network,
		[]plugin{weir, {Type: "portmap", Capabilities: map[string]bool{"portMappings": true}}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the conflist: %w", err)
	}
	return append(data, '\n'), nil
}
