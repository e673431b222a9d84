package conf

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func conflistOf(t *testing.T, network string, mtu int) string {
	t.Helper()
	data, err := Conflist([]netip.Prefix{netip.MustParsePrefix(network)}, mtu, Strict)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// asIstio appends a plugin as Istio's agent does: it decodes the list, and encodes it with sorted keys.
func asIstio(t *testing.T, list, plugin string) string {
	t.Helper()
	var all map[string]any
	var added any
	if err := json.Unmarshal([]byte(list), &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(plugin), &added); err != nil {
		t.Fatal(err)
	}
	all["plugins"] = append(all["plugins"].([]any), added)
	data, err := json.MarshalIndent(all, "", "    ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestWithAppended: plugins that other programs have appended stay, and weir's own part of the list is as Conflist
// returns it.
func TestWithAppended(t *testing.T) {
	const istio = `{"type": "istio-cni", "log_level": "info", "ambient_enabled": true, "n": 3}`
	now, before := conflistOf(t, "10.88.1.0/24", 1450), conflistOf(t, "10.88.0.0/24", 8951)
	for name, tc := range map[string]struct{ have, plugins string }{
		"equal":          {now, "weir portmap"},
		"outdated":       {before, "weir portmap"},
		"half written":   {now[:len(now)/2], "weir portmap"},
		"no list":        {`[]`, "weir portmap"},
		"of another":     {`{"name": "x", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}`, "weir portmap"},
		"with Istio":     {asIstio(t, now, istio), "weir portmap istio-cni"},
		"outdated too":   {asIstio(t, before, istio), "weir portmap istio-cni"},
		"two":            {asIstio(t, asIstio(t, now, `{"type": "bandwidth"}`), istio), "weir portmap bandwidth istio-cni"},
		"weir once more": {asIstio(t, now, `{"type": "weir", "enforcement": "off"}`), "weir portmap"},
		"nonsense":       {asIstio(t, now, `7`), "weir portmap"},
		"weaker": {
			asIstio(t, strings.Replace(now, `"strict"`, `"off"`, 1), istio), "weir portmap istio-cni",
		},
	} {
		got, err := WithAppended([]byte(now), []byte(tc.have))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		plugins, err := Plugins(got)
		if err != nil || strings.Join(plugins, " ") != tc.plugins {
			t.Errorf("%s: got the plugins %s, %v, want %s", name, plugins, err, tc.plugins)
		}
		if !strings.Contains(string(got), "10.88.1.0/24") || !strings.Contains(string(got), `"strict"`) {
			t.Errorf("%s: weir's own part isn't as wanted: %s", name, got)
		}
		if again, err := WithAppended([]byte(now), got); err != nil || string(again) != string(got) {
			t.Errorf("%s: it would be written again and again: %v\n%s", name, err, cmp.Diff(string(got), string(again)))
		}
		if strings.HasPrefix(name, "with") && string(got) != tc.have {
			t.Errorf("%s: it would be written although nothing differs: %s", name, got)
		}
		if strings.Contains(tc.plugins, "istio") && !strings.Contains(string(got), `"ambient_enabled"`) {
			t.Errorf("%s: the appended plugin has lost keys: %s", name, got)
		}
	}
}

func TestLeadsToWeir(t *testing.T) {
	const own = "10-weir.conflist"
	for text, want := range map[string]bool{
		conflistOf(t, "10.88.1.0/24", 1450):                                                                  true,
		`{"name": "n", "plugins": [{"type": "ptp"}, {"type": "weir"}]}`:                                      true,
		`{"name": "n", "type": "weir"}`:                                                                      true,
		`{"name": "m", "type": "multus", "delegates": [{"name": "weir"}]}`:                                   true,
		`{"name": "m", "type": "multus-shim"}`:                                                               true,
		`{"name": "m", "type": "meta", "clusterNetwork": "/host/etc/cni/net.d/10-weir.conflist"}`:            true,
		`{"name": "m", "type": "meta", "delegates": [{"plugins": [{"type": "weir"}, {"type":"portmap"}]}]}`:  true,
		`{"name": "m", "type": "multus", "clusterNetwork": "default", "delegates": []}`:                      true,
		`{"name": "m", "type": "multus", "delegates": [{"name": "cbr0", "plugins": [{"type": "flannel"}]}]}`: false,
		`{"name": "m", "type": "multus-shim", "clusterNetwork": "/host/etc/cni/net.d/10-flannel.conflist"}`:  false,
		`{"name": "m", "plugins": [{"type": "multus", "clusterNetwork": "/etc/cni/net.d/99-flannel.conf"}]}`: false,
		`{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}`:                            false,
		`{"name": "kindnet", "plugins": [{"type": "ptp"}, {"type": "portmap"}]}`:                             false,
		`{"name": "weave", "plugins": [{"name": "weave", "type": "weave-net"}, {"type": "portmap"}]}`:        false,
		`{"name": "x", "plugins": []}`:                                                                       false,
		`{"name": "weir"}`:                                                                                   false,
		`{`:                                                                                                  false,
		``:                                                                                                   false,
	} {
		if got := LeadsToWeir([]byte(text), own); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
