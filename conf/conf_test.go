package conf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func newRange(subnet, start, end, gateway string) Range {
	return Range{
		Subnet: netip.MustParsePrefix(subnet), Gateway: netip.MustParseAddr(gateway),
		RangeStart: netip.MustParseAddr(start), RangeEnd: netip.MustParseAddr(end),
	}
}

func TestParse(t *testing.T) {
	whole := []Range{newRange("10.88.0.0/24", "10.88.0.1", "10.88.0.254", "10.88.0.1")}
	for _, tc := range []struct {
		name, conf string // conf is the configuration without braces and without its key "name"
		want       NetConf
	}{
		{"defaults", `"ranges": [{"subnet": "10.88.0.0/24"}]`, NetConf{Ranges: whole, Enforcement: Strict}},
		{
			"null and empty are absent",
			`"ranges": [{"subnet": "10.88.0.0/24", "gateway": null, "rangeStart": ""}], "mtu": null, "enforcement": ""`,
			NetConf{Ranges: whole, Enforcement: Strict},
		},
		{
			"all given",
			`"ranges": [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.8", "rangeEnd": "10.88.0.9", ` +
				`"gateway": "10.88.0.254"}], "mtu": 1400, "enforcement": "closed"`,
			NetConf{
				Ranges:      []Range{newRange("10.88.0.0/24", "10.88.0.8", "10.88.0.9", "10.88.0.254")},
				MTU:         1400,
				Enforcement: Closed,
			},
		},
		{
			"one address",
			`"ranges": [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.7", "rangeEnd": "10.88.0.7"}], "enforcement": "off"`,
			NetConf{Ranges: []Range{newRange("10.88.0.0/24", "10.88.0.7", "10.88.0.7", "10.88.0.1")}, Enforcement: Off},
		},
		{
			"smallest subnet", `"ranges": [{"subnet": "10.88.0.4/30"}], "mtu": 68`,
			NetConf{
				Ranges:      []Range{newRange("10.88.0.4/30", "10.88.0.5", "10.88.0.6", "10.88.0.5")},
				MTU:         68,
				Enforcement: Strict,
			},
		},
		{
			"largest subnet", `"ranges": [{"subnet": "0.0.0.0/0"}], "mtu": 65535`,
			NetConf{
				Ranges:      []Range{newRange("0.0.0.0/0", "0.0.0.1", "255.255.255.254", "0.0.0.1")},
				MTU:         65535,
				Enforcement: Strict,
			},
		},
		{
			"two subnets", `"ranges": [{"subnet": "10.88.1.0/24"}, {"subnet": "10.88.0.0/24"}]`,
			NetConf{
				Ranges:      []Range{newRange("10.88.1.0/24", "10.88.1.1", "10.88.1.254", "10.88.1.1"), whole[0]},
				Enforcement: Strict,
			},
		},
		{
			"two ranges of one subnet",
			`"ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.9"}, {"subnet": "10.88.0.0/24", ` +
				`"rangeStart": "10.88.0.10", "gateway": "10.88.0.1"}]`,
			NetConf{Ranges: []Range{
				newRange("10.88.0.0/24", "10.88.0.1", "10.88.0.9", "10.88.0.1"),
				newRange("10.88.0.0/24", "10.88.0.10", "10.88.0.254", "10.88.0.1"),
			}, Enforcement: Strict},
		},
		{
			"both families", `"ranges": [{"subnet": "10.88.0.0/24"}, {"subnet": "fd00:10:88::/64"}], "mtu": 1280`,
			NetConf{
				Ranges: []Range{whole[0], newRange("fd00:10:88::/64", "fd00:10:88::1", "fd00:10:88::ffff:ffff:ffff:ffff",
					"fd00:10:88::1")}, MTU: 1280, Enforcement: Strict,
			},
		},
		{
			"IPv6, all given",
			`"ranges": [{"subnet": "fd00:10:88::/64", "rangeStart": "fd00:10:88::100", "rangeEnd": "fd00:10:88::1ff", ` +
				`"gateway": "fd00:10:88::fe"}]`,
			NetConf{
				Ranges:      []Range{newRange("fd00:10:88::/64", "fd00:10:88::100", "fd00:10:88::1ff", "fd00:10:88::fe")},
				Enforcement: Strict,
			},
		},
		{
			"smallest IPv6 subnet, which has no broadcast address", `"ranges": [{"subnet": "fd00::4/126"}]`,
			NetConf{Ranges: []Range{newRange("fd00::4/126", "fd00::5", "fd00::7", "fd00::5")}, Enforcement: Strict},
		},
		{
			"a very large one", `"ranges": [{"subnet": "fd00::/8"}]`,
			NetConf{
				Ranges:      []Range{newRange("fd00::/8", "fd00::1", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::1")},
				Enforcement: Strict,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(`{"name": "weir", ` + tc.conf + `}`))
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Name = "weir"
			if diff := cmp.Diff(&tc.want, got, byValue, cmpopts.IgnoreUnexported(NetConf{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestParseTakesTheRuntimesKeys: Parse accepts keys that runtimes add. It returns the values of two of them:
// cni.dev/valid-attachments and prevResult.
func TestParseTakesTheRuntimesKeys(t *testing.T) {
	c, err := Parse([]byte(`{
		"cniVersion": "1.1.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "weir", "type": "weir",
		"disableCheck": true, "disableGC": true, "loadOnlyInlinedPlugins": true,
		"capabilities": {"portMappings": true}, "dns": {"nameservers": ["10.96.0.10"]},
		"args": {"cni": {"labels": [{"key": "app", "value": "a"}]}}, "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
		"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}], "cni.dev/of-the-future": {"any": "thing"},
		"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]},
		"ranges": [{"subnet": "10.88.0.0/24"}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}, c.ValidAttachments); diff != "" {
		t.Error(diff)
	}
	if c.PrevResult == nil || c.PrevResult.Version() != "1.1.0" {
		t.Errorf("prevResult: %v", c.PrevResult)
	}
}

// TestParseRefuses: if a configuration is wrong, Parse returns an error of the right kind, with a message that says
// what is wrong.
func TestParseRefuses(t *testing.T) {
	const ranges = `"ranges": [{"subnet": "10.88.0.0/24"}]`
	for _, tc := range []struct {
		name, conf string
		kind       ErrorKind
		want       string
	}{
		{"nothing", ``, NotDecoded, "no JSON object"},
		{"half", `{"ranges": [`, NotDecoded, "no JSON object"},
		{"list", `[]`, NotDecoded, "no JSON object"},
		{"two objects", `{} {}`, NotDecoded, "no JSON object"},
		{"null", `null`, WrongValue, "name is missing"},
		{"no name", `{` + ranges + `}`, WrongValue, "name is missing"},
		{"name of a wrong type", `{"name": 5, ` + ranges + `}`, WrongValue, "name: 5"},
		{"cniVersion of a wrong type", `{"name": "n", "cniVersion": [1], ` + ranges + `}`, WrongValue, "cniVersion: [1]"},
		{"dns of a wrong type", `{"name": "n", "dns": "8.8.8.8", ` + ranges + `}`, WrongValue, `dns: "8.8.8.8"`},
		{"unknown key", `{"name": "n", "rangs": 1, ` + ranges + `}`, UnknownKey, "rangs: 1"},
		{"first of the unknown keys", `{"name": "n", "b": 1, "a": "2", ` + ranges + `}`, UnknownKey, `a: "2"`},
		{"key in capitals", `{"name": "n", "MTU": 1400, ` + ranges + `}`, UnknownKey, "MTU: 1400"},
		{
			"long value", `{"name": "n", "x": "` + strings.Repeat("y", 1000) + `", ` + ranges + `}`,
			UnknownKey, `x: "` + strings.Repeat("y", 79) + "…",
		},
		{
			"long value with a character at the cut", `{"name": "n", "x": "` + strings.Repeat("y", 78) + `éz", ` + ranges + `}`,
			UnknownKey, `x: "` + strings.Repeat("y", 78) + "… is no key",
		},
		{
			"ranges of a wrong type", `{"name": "n", "ranges": {"subnet": "10.88.0.0/24"}}`, WrongValue,
			`ranges: {"subnet": "10.88.0.0/24"}`,
		},
		{"range of a wrong type", `{"name": "n", "ranges": ["10.88.0.0/24"]}`, WrongValue, `ranges[0]: "10.88.0.0/24"`},
		{
			"unknown key in a range", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24"}, {"start": "x"}]}`, UnknownKey,
			`ranges[1].start: "x"`,
		},
		{"no subnet", `{"name": "n", "ranges": [{}]}`, WrongValue, "ranges[0].subnet is missing"},
		{"empty subnet", `{"name": "n", "ranges": [{"subnet": ""}]}`, WrongValue, "ranges[0].subnet is missing"},
		{"null range", `{"name": "n", "ranges": [null]}`, WrongValue, "ranges[0].subnet is missing"},
		{"subnet of a wrong type", `{"name": "n", "ranges": [{"subnet": 10}]}`, WrongValue, "ranges[0].subnet: 10 "},
		{
			"no prefix length", `{"name": "n", "ranges": [{"subnet": "10.88.0.0"}]}`,
			WrongValue, `ranges[0].subnet: "10.88.0.0"`,
		},
		{
			"bad prefix length", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/33"}]}`,
			WrongValue, `ranges[0].subnet: "10.88.0.0/33"`,
		},
		{
			"host bits", `{"name": "n", "ranges": [{"subnet": "10.88.0.7/24"}]}`,
			WrongValue, "ranges[0].subnet: 10.88.0.7/24 has host bits set; did you mean 10.88.0.0/24",
		},
		{
			"link-local IPv6", `{"name": "n", "ranges": [{"subnet": "fe80::/64"}]}`, WrongValue,
			"ranges[0].subnet: fe80::/64 can't be routed",
		},
		{
			"IPv6 multicast", `{"name": "n", "ranges": [{"subnet": "ff05::/64"}]}`,
			WrongValue, "ranges[0].subnet: ff05::/64 can't be routed",
		},
		{
			"all of IPv6", `{"name": "n", "ranges": [{"subnet": "::/0"}]}`,
			WrongValue, "ranges[0].subnet: ::/0 can't be routed",
		},
		{
			"IPv6 host bits", `{"name": "n", "ranges": [{"subnet": "fd00::1/64"}]}`, WrongValue,
			"ranges[0].subnet: fd00::1/64 has host bits set; did you mean fd00::/64",
		},
		{
			"no room for a pod in IPv6", `{"name": "n", "ranges": [{"subnet": "fd00::/127"}]}`,
			WrongValue, "ranges[0].subnet: fd00::/127 is too small",
		},
		{
			"any router's address as gateway", `{"name": "n", "ranges": [{"subnet": "fd00::/64", "gateway": "fd00::"}]}`,
			WrongValue, "ranges[0].gateway: fd00:: is outside",
		},
		{
			"IPv4 gateway in IPv6", `{"name": "n", "ranges": [{"subnet": "fd00::/64", "gateway": "10.88.0.1"}]}`,
			WrongValue, "ranges[0].gateway: 10.88.0.1 is outside",
		},
		{
			"address with a zone", `{"name": "n", "ranges": [{"subnet": "fd00::/64", "rangeEnd": "fd00::5%eth0"}]}`, WrongValue,
			"ranges[0].rangeEnd: fd00::5%eth0",
		},
		{
			"same IPv6 subnet twice",
			`{"name": "n", "ranges": [{"subnet": "fd00::/64"}, {"subnet": "10.88.0.0/24"}, {"subnet": "fd00::/64"}]}`,
			WrongValue, "ranges[2].rangeStart: fd00::1 overlaps ranges[0]",
		},
		{
			"an MTU that has no IPv6", `{"name": "n", "mtu": 1279, "ranges": [{"subnet": "fd00::/64"}]}`,
			WrongValue, "mtu: 1279 ",
		},
		{
			"IPv4 in IPv6", `{"name": "n", "ranges": [{"subnet": "::ffff:10.88.0.0/120"}]}`, WrongValue,
			"ranges[0].subnet: ::ffff:10.88.0.0/120",
		},
		{
			"no room for a pod", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/31"}]}`,
			WrongValue, "ranges[0].subnet: 10.88.0.0/31",
		},
		{
			"no room at all", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/32"}]}`,
			WrongValue, "ranges[0].subnet: 10.88.0.0/32",
		},
		{
			"bad gateway", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "gw"}]}`,
			WrongValue, `ranges[0].gateway: "gw"`,
		},
		{
			"gateway with a length", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.88.0.1/24"}]}`,
			WrongValue, `ranges[0].gateway: "10.88.0.1/24"`,
		},
		{
			"gateway elsewhere", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.89.0.1"}]}`,
			WrongValue, "ranges[0].gateway: 10.89.0.1",
		},
		{
			"gateway of another family", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "::ffff:10.88.0.1"}]}`,
			WrongValue, "ranges[0].gateway: ::ffff:10.88.0.1",
		},
		{
			"network as gateway", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.88.0.0"}]}`, WrongValue,
			"ranges[0].gateway: 10.88.0.0 ",
		},
		{
			"broadcast as gateway", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.88.0.255"}]}`,
			WrongValue, "ranges[0].gateway: 10.88.0.255",
		},
		{
			"network as start", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.0"}]}`, WrongValue,
			"ranges[0].rangeStart: 10.88.0.0 ",
		},
		{
			"broadcast as end", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.255"}]}`, WrongValue,
			"ranges[0].rangeEnd: 10.88.0.255",
		},
		{
			"start of a wrong type", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeStart": 5}]}`, WrongValue,
			"ranges[0].rangeStart: 5 ",
		},
		{
			"upside down",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.8"}]}`,
			WrongValue, "ranges[0].rangeEnd: 10.88.0.8",
		},
		{
			"same subnet twice", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24"}, {"subnet": "10.88.0.0/24"}]}`,
			WrongValue, "ranges[1].rangeStart: 10.88.0.1 overlaps ranges[0]",
		},
		{
			"one address in two ranges",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.9"}, {"subnet": "10.88.0.0/24", ` +
				`"rangeStart": "10.88.0.9"}]}`, WrongValue,
			"ranges[1].rangeStart: 10.88.0.9 overlaps ranges[0]",
		},
		{
			"range within a range",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24"}, {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", ` +
				`"rangeEnd": "10.88.0.9"}]}`, WrongValue,
			"ranges[1].rangeStart: 10.88.0.9 overlaps ranges[0]",
		},
		{
			"subnet within a subnet",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/16"}, {"subnet": "10.99.0.0/24"}, {"subnet": "10.88.3.0/24"}]}`,
			WrongValue, "ranges[2].subnet: 10.88.3.0/24 overlaps ranges[0]",
		},
		{
			"two gateways in one subnet",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.9"}, {"subnet": "10.88.0.0/24", ` +
				`"rangeStart": "10.88.0.10", "gateway": "10.88.0.2"}]}`, WrongValue,
			"ranges[1].subnet: 10.88.0.0/24 overlaps ranges[0] (10.88.0.0/24, gateway 10.88.0.1)",
		},
		{"small mtu", `{"name": "n", "mtu": 67, ` + ranges + `}`, WrongValue, "mtu: 67 "},
		{"large mtu", `{"name": "n", "mtu": 65536, ` + ranges + `}`, WrongValue, "mtu: 65536 "},
		{"negative mtu", `{"name": "n", "mtu": -1, ` + ranges + `}`, WrongValue, "mtu: -1 "},
		{"mtu of a wrong type", `{"name": "n", "mtu": "big", ` + ranges + `}`, WrongValue, `mtu: "big"`},
		{"half an mtu", `{"name": "n", "mtu": 1400.5, ` + ranges + `}`, WrongValue, "mtu: 1400.5 "},
		{"unknown enforcement", `{"name": "n", "enforcement": "lax", ` + ranges + `}`, WrongValue, "enforcement: lax "},
		{
			"enforcement in capitals", `{"name": "n", "enforcement": "Strict", ` + ranges + `}`,
			WrongValue, "enforcement: Strict ",
		},
		{
			"enforcement of a wrong type", `{"name": "n", "enforcement": true, ` + ranges + `}`,
			WrongValue, "enforcement: true ",
		},
		{
			"exclude of a wrong type", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "exclude": "10.88.0.9"}]}`,
			WrongValue, `ranges[0].exclude: "10.88.0.9" must be a list`,
		},
		{
			"exclude that is no CIDR",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "exclude": ["10.88.0.8/29", "x"]}]}`, WrongValue,
			`ranges[0].exclude[1]: "x" is no CIDR`,
		},
		{
			"exclude with host bits", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "exclude": ["10.88.0.9/29"]}]}`,
			WrongValue, "ranges[0].exclude[0]: 10.88.0.9/29 has host bits set; did you mean 10.88.0.8/29",
		},
		{
			"exclude elsewhere", `{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "exclude": ["10.89.0.0/29"]}]}`,
			WrongValue, "ranges[0].exclude[0]: 10.89.0.0/29 is outside",
		},
		{
			"all excluded",
			`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.7", "exclude": ["10.88.0.0/29"]}]}`,
			WrongValue, "leaves no address",
		},
		{
			"routes of a wrong type", `{"name": "n", "routes": {"dst": "10.0.0.0/8"}, ` + ranges + `}`, WrongValue,
			`routes: {"dst": "10.0.0.0/8"} must be a list`,
		},
		{
			"unknown key in a route", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "via": "10.88.0.1"}], ` + ranges + `}`,
			UnknownKey, `routes[0].via: "10.88.0.1"`,
		},
		{
			"route to nowhere", `{"name": "n", "routes": [{"mtu": 1400}], ` + ranges + `}`,
			WrongValue, "routes[0].dst is missing",
		},
		{
			"route with host bits", `{"name": "n", "routes": [{"dst": "10.0.0.1/8"}], ` + ranges + `}`, WrongValue,
			"routes[0].dst: 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8",
		},
		{
			"route of another family", `{"name": "n", "routes": [{"dst": "fd00::/8"}], ` + ranges + `}`, WrongValue,
			"routes[0].dst: fd00::/8 is IPv6",
		},
		{
			"route via another pod", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "gw": "10.88.0.9"}], ` + ranges + `}`,
			WrongValue, "routes[0].gw: 10.88.0.9 can't be reached",
		},
		{
			"route twice",
			`{"name": "n", "routes": [{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8", "mtu": 1400, "table": 254}], ` + ranges +
				`}`, WrongValue, "routes[1].dst: 10.0.0.0/8 is that of routes[0]",
		},
		{
			"small route mtu", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "mtu": 67}], ` + ranges + `}`, WrongValue,
			"routes[0].mtu: 67 must be",
		},
		{
			"route advmss of a wrong type", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "advmss": "x"}], ` + ranges + `}`,
			WrongValue, `routes[0].advmss: "x" is no number`,
		},
		{
			"negative priority", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "priority": -1}], ` + ranges + `}`, WrongValue,
			"routes[0].priority: -1 must be",
		},
		{
			"negative table", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "table": -1}], ` + ranges + `}`, WrongValue,
			"routes[0].table: -1 must be",
		},
		{
			"unknown scope", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "scope": 200}], ` + ranges + `}`, WrongValue,
			"routes[0].scope: 200 must be",
		},
		{"on-link via a gateway", `{"name": "n", "routes": [{"dst": "10.0.0.0/8", "gw": "10.88.0.1", "scope": 253}], ` +
			ranges + `}`, WrongValue, "routes[0].gw: 10.88.0.1 can't be"},
		{
			"requested address that is none", `{"name": "n", "runtimeConfig": {"ips": ["10.88.0.300"]}, ` + ranges + `}`,
			WrongValue, `runtimeConfig.ips[0]: "10.88.0.300" is no IP`,
		},
		{
			"requested addresses of a wrong type", `{"name": "n", "runtimeConfig": {"ips": "10.88.0.3"}, ` + ranges + `}`,
			WrongValue, `runtimeConfig: {"ips": "10.88.0.3"}`,
		},
		{
			"requested in args", `{"name": "n", "args": {"cni": {"ips": ["10.88.0.3", ""]}}, ` + ranges + `}`, WrongValue,
			`args.cni.ips[1]: "" is no IP`,
		},
		{"args of a wrong type", `{"name": "n", "args": {"cni": 5}, ` + ranges + `}`, WrongValue, `args: {"cni": 5}`},
		{
			"MAC that is none", `{"name": "n", "runtimeConfig": {"mac": "x"}, ` + ranges + `}`,
			WrongValue, `runtimeConfig.mac: "x" is no MAC`,
		},
		{
			"MAC of a group", `{"name": "n", "args": {"cni": {"mac": "01:00:5e:00:00:01"}}, ` + ranges + `}`, WrongValue,
			`args.cni.mac: "01:00:5e:00:00:01" is no MAC`,
		},
		{
			"MAC of zeros", `{"name": "n", "runtimeConfig": {"mac": "00:00:00:00:00:00"}, ` + ranges + `}`,
			WrongValue, `runtimeConfig.mac: "00:00:00:00:00:00" is no MAC`,
		},
		{
			"long MAC", `{"name": "n", "runtimeConfig": {"mac": "02:00:00:00:00:00:00:01"}, ` + ranges + `}`, WrongValue,
			`runtimeConfig.mac: "02:00:00:00:00:00:00:01" is no MAC`,
		},
		{
			"runtime's range",
			`{"name": "n", "runtimeConfig": {"ipRanges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.1.0.1/24"}]]}}`,
			WrongValue, "runtimeConfig.ipRanges[1][0].subnet: 10.1.0.1/24 has host bits",
		},
		{"unreadable prevResult", `{"name": "n", "cniVersion": "1.0.0", "prevResult": {"ips": [{"address": "x"}]}, ` +
			ranges + `}`, NotDecoded, "prevResult"},
		{
			"prevResult of no version", `{"name": "n", "cniVersion": "9.0.0", "prevResult": {}, ` + ranges + `}`,
			NotDecoded, "prevResult",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse([]byte(tc.conf))
			if c != nil {
				t.Errorf("beside the error: %+v", c)
			}
			wantError(t, err, tc.kind, tc.want)
		})
	}
}

func wantError(t *testing.T, err error, kind ErrorKind, words string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v (%T), want an *Error", err, err)
	}
	if e.Kind != kind || !strings.HasPrefix(e.Message, words) && !strings.Contains(e.Message, " "+words) {
		t.Errorf("kind %d: %s; want kind %d with %q", e.Kind, e.Message, kind, words)
	}
}

func TestParseArgs(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		want       Args
		err        string // empty if no error is wanted
	}{
		{"none", "", Args{}, ""},
		{
			"containerd's",
			"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns-1;K8S_POD_NAME=a.b-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1",
			Args{Namespace: "ns-1", Name: "a.b-0", UID: "u1"},
			"",
		},
		{"empty pairs", ";;K8S_POD_NAME=a;", Args{Name: "a"}, ""},
		{"empty values", "K8S_POD_NAMESPACE=;K8S_POD_NAME=;K8S_POD_UID=", Args{}, ""},
		{"the last counts", "K8S_POD_NAME=a;K8S_POD_NAME=b", Args{Name: "b"}, ""},
		{"others' keys hold anything", "X=/ \"\n;Y=1=2;=", Args{}, ""},
		{"keys are exact", "k8s_pod_name=a; K8S_POD_NAME=b", Args{}, ""},
		{"as long as a name can be", "K8S_POD_NAME=" + strings.Repeat("a", 253), Args{Name: strings.Repeat("a", 253)}, ""},
		{"too long", "K8S_POD_NAME=" + strings.Repeat("a", 254), Args{}, `K8S_POD_NAME="aaa`},
		{"no pair", "K8S_POD_NAME", Args{}, `"K8S_POD_NAME" is no KEY=VALUE pair`},
		{"no pair among others", "K8S_POD_NAME=a;x", Args{}, `"x" is no KEY=VALUE pair`},
		{"path", "K8S_POD_NAMESPACE=../x", Args{}, `K8S_POD_NAMESPACE="../x"`},
		{"blank", "K8S_POD_NAME=a b", Args{}, `K8S_POD_NAME="a b"`},
		{"line feed", "K8S_POD_NAME=a\nb", Args{}, `K8S_POD_NAME="a\nb"`},
		{"NUL", "K8S_POD_UID=a\x00", Args{}, `K8S_POD_UID="a\x00"`},
		{"quote", `K8S_POD_UID=a"`, Args{}, `K8S_POD_UID="a\""`},
		{"backslash", `K8S_POD_NAME=a\`, Args{}, `K8S_POD_NAME="a\\"`},
		{"beyond ASCII", "K8S_POD_NAME=ä", Args{}, `K8S_POD_NAME="ä"`},
		{"no UTF-8", "K8S_POD_NAME=\xff", Args{}, `K8S_POD_NAME="\xff"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseArgs(tc.args)
			if tc.err != "" {
				wantError(t, err, WrongVariable, tc.err)
			} else if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestIdentify: Identify takes the pod's identity from CNI_ARGS, and only the missing parts from args.cni. If a
// needed part of the identity is missing or wrong, Identify returns an error.
func TestIdentify(t *testing.T) {
	for _, tc := range []struct {
		name, cni string
		args, id  Args
		kind      ErrorKind
		err       string // empty if no error is wanted
	}{
		{
			"kubelet's", `{"K8S_POD_NAMESPACE": "x", "K8S_POD_NAME": "y"}`,
			Args{Namespace: "ns-1", Name: "a"},
			Args{Namespace: "ns-1", Name: "a"},
			0, "",
		},
		{"podman's", `{"K8S_POD_NAMESPACE": "lab"}`, Args{Name: "a"}, Args{Namespace: "lab", Name: "a"}, 0, ""},
		{
			"nerdctl's", `{"K8S_POD_NAMESPACE": "lab", "K8S_POD_NAME": "a", "K8S_POD_UID": "u"}`,
			Args{},
			Args{Namespace: "lab", Name: "a", UID: "u"},
			0, "",
		},
		{
			"labels",
			`{"labels": [{"key": "app", "value": "x"}, {"key": "io.kubernetes.pod.namespace", "value": "lab"}, ` +
				`{"key": "io.kubernetes.pod.name", "value": "a"}]}`,
			Args{},
			Args{Namespace: "lab", Name: "a"},
			0, "",
		},
		{
			"labels as an object, and a key before them",
			`{"K8S_POD_NAME": "b", "labels": {"io.kubernetes.pod.namespace": "lab", "io.kubernetes.pod.name": "a", ` +
				`"io.kubernetes.pod.uid": "u"}}`,
			Args{},
			Args{Namespace: "lab", Name: "b", UID: "u"},
			0, "",
		},
		{"others' labels", `{"labels": 1}`, Args{Namespace: "ns-1", Name: "a"}, Args{Namespace: "ns-1", Name: "a"}, 0, ""},
		{"nothing", `{}`, Args{}, Args{}, WrongVariable, "the runtime doesn't say which pod this is"},
		{"half of it", `{"K8S_POD_NAME": "a"}`, Args{}, Args{}, WrongVariable, "args.cni of the network configuration"},
		{"no labels", `{"labels": ["a"]}`, Args{}, Args{}, WrongValue, "args.cni.labels: "},
		{
			"a path", `{"K8S_POD_NAMESPACE": "../x", "K8S_POD_NAME": "a"}`,
			Args{},
			Args{},
			WrongValue,
			`args.cni.K8S_POD_NAMESPACE: "../x"`,
		},
		{
			"a bad label", `{"labels": {"io.kubernetes.pod.namespace": "a b"}}`,
			Args{},
			Args{},
			WrongValue,
			`args.cni.labels: io.kubernetes.pod.namespace: "a b"`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse([]byte(`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24"}], "args": {"cni": ` + tc.cni + `}}`))
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Identify(tc.args)
			if tc.err != "" {
				wantError(t, err, tc.kind, tc.err)
				return
			}
			if diff := cmp.Diff(tc.id, got); err != nil || diff != "" {
				t.Error(err, diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		``, `null`, `[]`, `{}`, `{"name": "n", "ranges": [null, {}, 1]}`,
		`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24"}]}`,
		`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.9"}, {"subnet": "10.88.0.0/24", ` +
			`"rangeStart": "10.88.0.10"}], "mtu": 1400}`,
		`{"name": "n", "ranges": [{"subnet": "10.88.0.0/30", "rangeStart": "10.88.0.2", "gateway": "10.88.0.1"}, ` +
			`{"subnet": "255.255.255.252/30"}, {"subnet": "0.0.0.0/30"}]}`,
		`{"name": "n", "ranges": [{"subnet": "0.0.0.0/0", "rangeStart": "::1%eth0", "gateway": "::ffff:10.0.0.1"}], ` +
			`"enforcement": "off"}`,
		`{"name": "n", "ranges": [{"subnet": "fd00::/64", "rangeStart": "fd00::9%eth0"}, {"subnet": "fd00::4/126"}, ` +
			`{"subnet": "10.88.0.0/24"}], "mtu": 1280}`,
		`{"name": "n", "ranges": [{"subnet": "10.88.0.0/24", "exclude": ["10.88.0.8/29", "10.88.0.2"]}], ` +
			`"routes": [{"dst": "10.0.0.0/8", "mtu": 1400, "table": 100, "scope": 253}, {"dst": "0.0.0.0/0", ` +
			`"gw": "10.88.0.1"}]}`,
		`{"name": "n", "runtimeConfig": {"ips": ["10.88.0.9/24"], "mac": "0a:58:00:00:00:01", ` +
			`"ipRanges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00::/64"}]], "dns": {"servers": ["::1"]}}, ` +
			`"args": {"cni": {"ips": ["fd00::9"]}}}`,
		`{"name": "n", "ranges": [{"subnet": "::/0"}], "dns": {"nameservers": 1}, "cni.dev/valid-attachments": [{}]}`,
		`{"cniVersion": "1.1.0", "name": "n", "prevResult": {"interfaces": [{"name": "eth0"}], ` +
			`"ips": [{"address": "10.1.0.2/24", "interface": 7}], "routes": [{"dst": "0.0.0.0/0"}]}, ` +
			`"ranges": [{"subnet": "10.88.0.0/24"}]}`,
		`{"cniVersion": "0.2.0", "name": "n", "prevResult": {"ip4": {"ip": "10.1.0.2/24", "routes": null}}, ` +
			`"ranges": [{"subnet": "10.88.0.0/24"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind == WrongVariable || e.Message == "" {
				t.Fatalf("%#v, want an *Error about the configuration, with a message", err)
			}
			return
		}
		if c.Name == "" || c.MTU < 0 || c.MTU > maxMTU || c.Enforcement != Strict && c.Enforcement != Closed &&
			c.Enforcement != Off {
			t.Fatalf("%+v", c)
		}
		for i, r := range c.Ranges {
			for _, a := range []netip.Addr{r.Gateway, r.RangeStart, r.RangeEnd} {
				if !r.Subnet.Contains(a) || a == r.Subnet.Addr() || a.Zone() != "" || (a.Is4() && a == lastAddr(r.Subnet)) {
					t.Errorf("ranges[%d]: %s is no host's address in %s", i, a, r.Subnet)
				}
			}
			if r.RangeEnd.Less(r.RangeStart) {
				t.Errorf("ranges[%d]: %s to %s", i, r.RangeStart, r.RangeEnd)
			}
			rows := r.Runs()
			if len(rows) == 0 {
				t.Errorf("ranges[%d] gives out nothing: %+v", i, r)
			}
			for _, row := range rows {
				if !r.CanAssign(row.From()) || !r.CanAssign(row.To()) {
					t.Errorf("ranges[%d]: %v of its rows is none that it gives", i, row)
				}
			}
			for j, other := range c.Ranges[:i] {
				if !r.RangeEnd.Less(other.RangeStart) && !other.RangeEnd.Less(r.RangeStart) {
					t.Errorf("ranges[%d] and ranges[%d] overlap: %+v, %+v", j, i, other, r)
				}
			}
		}
	})
}

func FuzzParseArgs(f *testing.F) {
	for _, s := range []string{
		"", ";", "=", "K8S_POD_NAME", "K8S_POD_NAME=../x", "K8S_POD_UID=\xff",
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns-1;K8S_POD_NAME=a;K8S_POD_UID=u1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseArgs(s)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind != WrongVariable {
				t.Fatalf("%#v, want an *Error about a variable", err)
			}
			return
		}
		for _, v := range []string{a.Namespace, a.Name, a.UID} {
			if len(v) > 253 || strings.ContainsAny(v, "/\\\"' \n\x00") {
				t.Errorf("%q was taken for a name", v)
			}
		}
	})
}
