package conf

import (
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, beside string) *NetConf {
	t.Helper()
	c, err := Parse([]byte(`{"cniVersion": "1.0.0", "name": "weir", ` + beside + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const dual = `"ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.99", "exclude": ["10.88.0.8/29", ` +
	`"10.88.0.20"]}, {"subnet": "fd00:10:88::/64"}]`

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		name, conf, args string
		want             string   // a part of the error; empty if no error is wanted
		addrs            []string // the wanted addresses if no error is wanted
		kind             ErrorKind
	}{
		{name: "none"},
		{name: "capability", conf: `"runtimeConfig": {"ips": ["10.88.0.5/24"]}, `, addrs: []string{"10.88.0.5"}},
		{
			name:  "args",
			conf:  `"args": {"cni": {"ips": ["10.88.0.5", "fd00:10:88::5"]}}, `,
			addrs: []string{"10.88.0.5", "fd00:10:88::5"},
		},
		{name: "CNI_ARGS", args: "IP=10.88.0.5", addrs: []string{"10.88.0.5"}},
		{
			name:  "both families in CNI_ARGS",
			args:  "IP=fd00:10:88::5/64,10.88.0.5",
			addrs: []string{"fd00:10:88::5", "10.88.0.5"},
		},
		{name: "IPv4 in IPv6", args: "IP=::ffff:10.88.0.5", addrs: []string{"10.88.0.5"}},
		{
			name:  "each a family",
			conf:  `"args": {"cni": {"ips": ["fd00:10:88::5"]}}, `,
			args:  "IP=10.88.0.5",
			addrs: []string{"fd00:10:88::5", "10.88.0.5"},
		},
		{
			name:  "the same thrice",
			conf:  `"args": {"cni": {"ips": ["10.88.0.5"]}}, "runtimeConfig": {"ips": ["10.88.0.5"]}, `,
			args:  "IP=10.88.0.5",
			addrs: []string{"10.88.0.5"},
		},
		{name: "empty", conf: `"args": {"cni": {"ips": null}}, "runtimeConfig": {"ips": []}, `, args: "IP=;MAC="},
		{
			name: "two of a family", conf: `"args": {"cni": {"ips": ["10.88.0.5"]}}, "runtimeConfig": {"ips": ["10.88.0.6"]}, `,
			kind: WrongValue, want: "runtimeConfig.ips[0]: 10.88.0.6 and args.cni.ips[0] 10.88.0.5",
		},
		{name: "in no range", args: "IP=10.89.0.5", kind: WrongValue, want: "CNI_ARGS: IP: 10.89.0.5 is in no range"},
		{
			name: "behind the range's end",
			conf: `"runtimeConfig": {"ips": ["10.88.0.100"]}, `,
			kind: WrongValue,
			want: "runtimeConfig.ips[0]: 10.88.0.100 is in no range",
		},
		{
			name: "gateway",
			conf: `"runtimeConfig": {"ips": ["10.88.0.1"]}, `,
			kind: WrongValue,
			want: "runtimeConfig.ips[0]: 10.88.0.1 is in no range, or a gateway",
		},
		{
			name: "excluded",
			conf: `"args": {"cni": {"ips": ["10.88.0.15"]}}, `,
			kind: WrongValue,
			want: "args.cni.ips[0]: 10.88.0.15 is in no range, or a gateway, or excluded: 10.88.0.0/24 (10.88.0.1 to " +
				"10.88.0.99 without [10.88.0.8/29 10.88.0.20/32])",
		},
		{name: "excluded alone", args: "IP=10.88.0.20", kind: WrongValue, want: "CNI_ARGS: IP: 10.88.0.20"},
		{name: "no address", args: "IP=10.88.0", kind: WrongVariable, want: `CNI_ARGS: IP="10.88.0"`},
		{name: "zone", args: "IP=fd00:10:88::5%eth0", kind: WrongVariable, want: `CNI_ARGS: IP="fd00:10:88::5%eth0"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := parse(t, tc.conf+dual)
			args, err := ParseArgs(tc.args)
			var addrs []netip.Addr
			if err == nil {
				addrs, err = c.Addresses(args)
			}
			if tc.want != "" {
				wantError(t, err, tc.kind, tc.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range addrs {
				got = append(got, a.String())
			}
			if diff := cmp.Diff(tc.addrs, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHardwareAddr(t *testing.T) {
	const inArgs, inRuntime = `"args": {"cni": {"mac": "02:00:00:00:00:02"}}, `,
		`"runtimeConfig": {"mac": "02:00:00:00:00:03"}, `
	for _, tc := range []struct{ conf, args, want string }{
		{"", "", ""},
		{"", "MAC=02-00-00-00-00-01", "02:00:00:00:00:01"},
		{inArgs, "MAC=02:00:00:00:00:01", "02:00:00:00:00:02"},
		{inRuntime + inArgs, "MAC=02:00:00:00:00:01", "02:00:00:00:00:03"},
	} {
		args, err := ParseArgs(tc.args)
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, tc.conf+dual).HardwareAddr(args).String(); got != tc.want {
			t.Errorf("%s%s: got %s, want %s", tc.conf, tc.args, got, tc.want)
		}
	}
	_, err := ParseArgs("MAC=ff:ff:ff:ff:ff:ff")
	wantError(t, err, WrongVariable, `CNI_ARGS: MAC="ff:ff:ff:ff:ff:ff"`)
}

func TestTheRuntimesRangesAndDNS(t *testing.T) {
	c := parse(t, `"dns": {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["s"], "options": ["o"]},
		"runtimeConfig": {"ipRanges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]],
			"dns": {"servers": ["10.0.0.2"], "searches": ["t", "u"]}}, `+dual)
	want := []Range{
		newRange("10.99.0.0/24", "10.99.0.1", "10.99.0.254", "10.99.0.1"),
		newRange("fd00:99::/64", "fd00:99::1", "fd00:99::ffff:ffff:ffff:ffff", "fd00:99::1"),
	}
	if diff := cmp.Diff(want, c.Ranges, byValue); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(types.DNS{
		Nameservers: []string{"10.0.0.2"},
		Domain:      "d",
		Search:      []string{"t", "u"},
		Options:     []string{"o"},
	}, c.DNS); diff != "" {
		t.Error(diff)
	}
	if got := parse(t, `"runtimeConfig": {"ipRanges": []}, `+dual).Ranges; len(got) != 2 {
		t.Errorf("no ranges of the runtime's, but %v", got)
	}
}

func TestForAdd(t *testing.T) {
	const prev = `"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}, `
	for _, tc := range []struct {
		conf, want string
		chained    bool
	}{
		{dual, "", false},
		{`"enforcement": "off"`, "ranges is missing", false},
		{`"ranges": []`, "ranges is missing", false},
		{`"ranges": null`, "ranges is missing", false},
		{prev + `"enforcement": "closed"`, "", true},
		{prev + dual, "ranges: weir comes after", true},
		{prev + `"routes": [{"dst": "10.0.0.0/8"}]`, "routes: weir comes after", true},
		{prev + `"mtu": 1400`, "mtu: weir comes after", true},
	} {
		chained, err := parse(t, tc.conf).ForAdd()
		if tc.want != "" {
			wantError(t, err, WrongValue, tc.want)
		} else if err != nil || chained != tc.chained {
			t.Errorf("%s: %v, %v", tc.conf, chained, err)
		}
	}
}

func TestRoutesOf(t *testing.T) {
	c := parse(t, `"routes": [
		{"dst": "10.0.0.0/8", "mtu": 1400, "advmss": 1360, "priority": 5},
		{"dst": "10.88.0.1/32", "scope": 253, "table": 100},
		{"dst": "0.0.0.0/0", "table": 100}, {"dst": "::/0", "gw": "fd00:10:88::1", "mtu": 1300}], `+dual)
	table, link := 100, ScopeLink
	p, gw4, gw6 := netip.MustParsePrefix, netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd00:10:88::1")
	for family, want := range map[Family][]Route{
		IPv4: {
			{Dst: p("0.0.0.0/0"), Gateway: gw4},
			{Dst: p("10.0.0.0/8"), Gateway: gw4, MTU: 1400, AdvMSS: 1360, Priority: 5},
			{Dst: p("10.88.0.1/32"), Table: &table, Scope: &link},
			{Dst: p("0.0.0.0/0"), Gateway: gw4, Table: &table}, // in another table: the main table's default route stays
		},
		IPv6: {{Dst: p("::/0"), Gateway: gw6, MTU: 1300}},
	} {
		gateway := map[Family]netip.Addr{IPv4: gw4, IPv6: gw6}[family]
		if diff := cmp.Diff(want, RoutesOf(c.Routes, family, gateway), byValue); diff != "" {
			t.Errorf("%s: %s", family, diff)
		}
	}
}
