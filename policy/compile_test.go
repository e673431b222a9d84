package policy_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/golden"
)

func TestGolden(t *testing.T) {
	golden.Each(t, "..", func(t *testing.T, name string, state policy.State) {
		golden.Compare(t, "testdata/"+name+".ruleset", written(policy.Compile(state)))
	})
}

// TestVerdicts: the compiled rules and the evaluator both give the verdicts in this table. A packet is written as
// FROM>TO:PROTO:PORT.
func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		file         string
		pass, denied string
	}{
		{
			"walkthrough-1-none",
			"busybox>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80 busybox>192.0.2.1:udp:53 busybox>node:tcp:22", "",
		},
		{
			"walkthrough-2-deny-all", "busybox>192.0.2.1:tcp:443 busybox>busybox:tcp:80 busybox>other:tcp:80",
			"busybox>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80 other>busybox:tcp:80",
		},
		{
			"walkthrough-3-allow", "other>busybox:tcp:80",
			"busybox>http-echo:tcp:80 other>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80",
		},
		{"walkthrough-4-labelled", "busybox>http-echo:tcp:80 busybox>http-echo:udp:53", "other>http-echo:tcp:80"},
		{
			"peers",
			"green>web:tcp:80 far>web:tcp:80 172.16.5.1>web:tcp:8443 172.16.5.1>web:tcp:8450 web>8.8.8.8:udp:53 " +
				"web>10.1.2.3:tcp:443 green>web:tcp:443",
			"red>web:tcp:80 green>web:tcp:81 green>web:udp:80 172.16.9.1>web:tcp:8443 172.16.5.1>web:tcp:8451 " +
				"web>8.8.8.8:udp:54 web>10.1.2.3:tcp:80 web>10.9.2.3:tcp:443 web>node:tcp:10250 web>green:tcp:80 " +
				"hostnet>web:tcp:80 finished>web:tcp:80",
		},
		{
			"named-ports",
			"client>old:tcp:80 client>new:tcp:8080 client>old:udp:53 client>far:tcp:8000 old>old:tcp:9090 far>old:tcp:9090",
			"client>old:tcp:8080 client>new:tcp:80 client>old:tcp:7777 client>old:tcp:53 client>new:udp:5353 " +
				"client>new:tcp:5353 client>old:tcp:9091 client>old:tcp:443 client>old:udp:80 client>far:tcp:80 " +
				"client>hostnet:tcp:80 client>old:tcp:9090 client>192.0.2.1:tcp:80 new>old:tcp:80",
		},
		{
			"dual-stack",
			"client>web:tcp:8080 client/6>web/6:tcp:8080 client/6>six:tcp:80 old-client>web:tcp:8080 " +
				"2001:db8::1>web/6:tcp:443 192.0.2.1>web:tcp:443 " +
				"six>2001:db8::1:58:0 web/6>client/6:udp:53 web>10.88.1.9:tcp:80 six>client/6:58:0 elsewhere>six:tcp:80 " +
				"six>six:tcp:9 six>node/6:tcp:22 six>fd00:77::1:udp:53 web/6>8000::1:udp:53",
			"client/6>web/6:tcp:80 client/6>six:tcp:8080 2001:db8:bad::1>web/6:tcp:443 2001:db8::1>web/6:tcp:80 " +
				"192.0.2.1>web:tcp:80 " +
				"web>192.0.2.1:tcp:443 web/6>fd00::1:tcp:443 web/6>six:tcp:80 six>fd00:10:88::77:tcp:80 six>web/6:58:0 " +
				"2001:db8::1>six:58:0 web>node:tcp:22 web>192.0.2.1:udp:53",
		},
		{
			"audit", "cache>web:tcp:81 client>web:tcp:80 web>db:tcp:5432 web>192.0.2.1:udp:53 db>client:tcp:80",
			"client>db:tcp:80 client>cache:tcp:80 192.0.2.1>db:tcp:80",
		},
		{"broken", "other>open:tcp:80", "other>closed:tcp:80 closed>other:tcp:80 other>half:tcp:80 other>half:tcp:81"},
	} {
		t.Run(tc.file, func(t *testing.T) {
			state := golden.Load(t, "testdata/"+tc.file+".yaml")
			decides(t, policy.Compile(state), state, tc.pass, tc.denied)
			evaluates(t, state, tc.pass, tc.denied)
		})
	}
}

// TestChained: packets from chained attachments, whose addresses are in the set weir-chained, aren't masqueraded.
func TestChained(t *testing.T) {
	chained := policy.Endpoint{
		ID:          "c:eth0",
		Chained:     true,
		Enforcement: conf.Strict,
		Pod:         policy.PodRef{Namespace: "shop", Name: "web"},
		Addresses: []policy.Address{
			{Addr: netip.MustParseAddr("10.99.0.2"), Subnet: netip.MustParsePrefix("10.99.0.2/32")},
		},
	}
	state := policy.State{
		Objects:   policy.Objects{Pods: []policy.Pod{{Namespace: "shop", Name: "web"}}},
		Endpoints: []policy.Endpoint{chained},
	}
	text := func() string {
		var b bytes.Buffer
		if err := policy.Compile(state).Write(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	with := text()
	for _, words := range []string{"weir-chained", "source in weir-chained"} {
		if !strings.Contains(with, words) {
			t.Errorf("no %q in\n%s", words, with)
		}
	}
	if returns, masquerades := strings.Index(with, "source in weir-chained"),
		strings.Index(with, ": masquerade"); returns > masquerades {
		t.Errorf("masqueraded before it is left out:\n%s", with)
	}
	state.Endpoints[0].Chained = false
	if without := text(); strings.Contains(without, "weir-chained") {
		t.Errorf("a set for nobody:\n%s", without)
	}
}
