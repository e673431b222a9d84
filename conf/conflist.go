package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
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

// listed is a network configuration list, or the configuration of a single plugin.
type listed struct {
	Type    string            `json:"type"`
	Plugins []json.RawMessage `json:"plugins"`
}

func typeOf(plugin json.RawMessage) string {
	var p struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(plugin, &p) != nil {
		return ""
	}
	return p.Type
}

// WithAppended returns the parameter want, a result of Conflist, with further plugins at its end. These are the plugins
// that other programs, such as the agents of Istio and Linkerd, have appended to the parameter have, which is a list of
// weir too. If the new list means the same as the parameter have, WithAppended returns that parameter unchanged.
func WithAppended(want, have []byte) ([]byte, error) {
	if added := appended(have); len(added) > 0 {
		var list map[string]json.RawMessage
		var plugins []json.RawMessage
		err := json.Unmarshal(want, &list)
		if err == nil {
			err = json.Unmarshal(list["plugins"], &plugins)
		}
		if err == nil {
			list["plugins"], err = json.Marshal(append(plugins, added...))
		}
		if err == nil {
			want, err = json.MarshalIndent(list, "", "  ")
		}
		if err != nil {
			return nil, fmt.Errorf("append the plugins of other programs to the conflist: %w", err)
		}
		want = append(want, '\n')
	}
	if sameJSON(want, have) {
		return have, nil
	}
	return want, nil
}

// appended returns the plugins after weir in the list, except weir and portmap, which Conflist writes itself. If the
// list can't be decoded, appended returns nil.
func appended(list []byte) []json.RawMessage {
	var l listed
	if json.Unmarshal(list, &l) != nil {
		return nil
	}
	first := slices.IndexFunc(l.Plugins, func(p json.RawMessage) bool { return typeOf(p) == "weir" })
	if first < 0 {
		return nil
	}
	return slices.DeleteFunc(l.Plugins[first:], func(p json.RawMessage) bool {
		return slices.Contains([]string{"", "weir", "portmap"}, typeOf(p))
	})
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// ConfigurationSuffixes are the suffixes of the files that runtimes read (libcni, ConfFiles).
var ConfigurationSuffixes = []string{".conf", ".conflist", ".json"}

// Plugins returns the types of the plugins of a network configuration. If data is no configuration, it returns an
// error.
func Plugins(data []byte) ([]string, error) {
	var list listed
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, typeOf(p))
	}
	if list.Type != "" {
		types = append(types, list.Type)
	}
	if len(types) == 0 {
		return nil, errors.New("it names no plugin")
	}
	return types, nil
}

// LeadsToWeir reports whether a runtime with this network configuration starts pods with weir. file is the name of
// weir's own file. A configuration leads to weir if weir is one of its plugins or a plugin's delegate, or if it names
// weir's network or file. Multus can also look up the cluster's network in the API server, which this function can't
// read. So Multus's configuration also counts if it neither embeds a network nor names a file.
func LeadsToWeir(data []byte, file string) bool {
	var all any
	types, err := Plugins(data)
	if err != nil || json.Unmarshal(data, &all) != nil {
		return false
	}
	isMultus := func(t string) bool { return strings.HasPrefix(t, "multus") }
	return leadsTo(all, file) || slices.ContainsFunc(types, isMultus) && !namesNetwork(all)
}

// namesNetwork reports whether Multus's configuration embeds the cluster's network, or names that network's file.
func namesNetwork(config any) bool {
	c, _ := config.(map[string]any)
	delegates, _ := c["delegates"].([]any)
	network, _ := c["clusterNetwork"].(string)
	plugins, _ := c["plugins"].([]any)
	isSuffix := func(suffix string) bool { return strings.HasSuffix(network, suffix) }
	return len(delegates) > 0 || slices.ContainsFunc(ConfigurationSuffixes, isSuffix) ||
		slices.ContainsFunc(plugins, namesNetwork)
}

func leadsTo(value any, file string) bool {
	switch v := value.(type) {
	case string:
		return v == Network || v == file || strings.HasSuffix(v, "/"+file)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return leadsTo(e, file) })
	case map[string]any:
		for _, e := range v {
			if leadsTo(e, file) {
				return true
			}
		}
	}
	return false
}
