package policy_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// onNode is a state in which every pod with an address in 10.88.0.0/24 is on this node.
func onNode(objects policy.Objects) policy.State {
	state := policy.State{Objects: objects}
	subnet := netip.MustParsePrefix("10.88.0.0/24")
	for _, p := range objects.Pods {
		for _, a := range p.Addresses {
			if !subnet.Contains(a) || p.HostNetwork {
				continue
			}
			state.Endpoints = append(state.Endpoints, endpoint.Endpoint{
				ContainerID: p.Namespace + "." + p.Name, IfName: "eth0", Enforcement: conf.Strict,
				Pod:       endpoint.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
				Addresses: []endpoint.Address{{Addr: a, Subnet: subnet, Gateway: netip.MustParseAddr("10.88.0.1")}},
			})
		}
	}
	return state
}

// TestGolden compares rulesets with testdata/NAME.rules; go test -update writes them.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			var got bytes.Buffer
			if err := policy.Compile(loadAny(t, path)).Write(&got); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".rules"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("-%s +Compile (go test ./policy -update accepts it)\n%s", golden, diff)
			}
		})
	}
}

// verdicts of one table row are for packets FROM>TO:PROTO:PORT, where FROM and TO are pods or addresses.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		file         string
		pass, closed string
	}{
		{"walkthrough-1-none", "busybox>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80 busybox>192.0.2.1:udp:53 busybox>node:tcp:22", ""},
		{"walkthrough-2-deny-all", "busybox>192.0.2.1:tcp:443 busybox>busybox:tcp:80 busybox>other:tcp:80", "busybox>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80 other>busybox:tcp:80"},
		{"walkthrough-3-allow", "other>busybox:tcp:80", "busybox>http-echo:tcp:80 other>http-echo:tcp:80 192.0.2.1>http-echo:tcp:80"},
		{"walkthrough-4-labelled", "busybox>http-echo:tcp:80 busybox>http-echo:udp:53", "other>http-echo:tcp:80"},
		{
			"peers",
			"green>web:tcp:80 far>web:tcp:80 172.16.5.1>web:tcp:8443 172.16.5.1>web:tcp:8450 web>8.8.8.8:udp:53 web>10.1.2.3:tcp:443 green>web:tcp:443",
			"red>web:tcp:80 green>web:tcp:81 green>web:udp:80 172.16.9.1>web:tcp:8443 172.16.5.1>web:tcp:8451 web>8.8.8.8:udp:54 web>10.1.2.3:tcp:80 web>10.9.2.3:tcp:443 web>node:tcp:10250 web>green:tcp:80 hostnet>web:tcp:80 finished>web:tcp:80",
		},
		{"broken", "other>open:tcp:80", "other>closed:tcp:80 closed>other:tcp:80 other>half:tcp:80 other>half:tcp:81"},
	} {
		t.Run(tc.file, func(t *testing.T) {
			state := loadAny(t, "testdata/"+tc.file+".yaml")
			judge, err := policy.NewJudge(policy.Compile(state))
			if err != nil {
				t.Fatal(err)
			}
			for want, list := range map[bool]string{true: tc.pass, false: tc.closed} {
				for _, s := range strings.Fields(list) {
					if got := judge.Allows(packet(t, state, s)); got != want {
						t.Errorf("%s: allowed %v, want %v", s, got, want)
					}
				}
			}
		})
	}
}

// loadAny reads manifests even if they don't validate, as the API server would hand them out.
func loadAny(t testing.TB, path string) policy.State {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return onNode(unvalidated(t, data))
}

// TestTunnelPortIsForNodes: tunnel packets are taken from nodes only, and pods reach no node's tunnel port.
func TestTunnelPortIsForNodes(t *testing.T) {
	state := loadAny(t, "testdata/walkthrough-1-none.yaml")
	state.Nodes = []policy.Node{
		{Name: "self", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}},
		{Name: "peer", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.1.0/24")}},
	}
	for _, overlay := range []bool{false, true} {
		state.Overlay = overlay
		judge, err := policy.NewJudge(policy.Compile(state))
		if err != nil {
			t.Fatal(err)
		}
		for s, want := range map[string]bool{
			"192.0.2.3>node:udp:4789":    true,
			"192.0.2.9>node:udp:4789":    !overlay,
			"busybox>node:udp:4789":      !overlay,
			"busybox>192.0.2.3:udp:4789": !overlay,
			"busybox>192.0.2.3:udp:4790": true,
			"busybox>192.0.2.9:udp:4789": true,
		} {
			if got := judge.Allows(packet(t, state, s)); got != want {
				t.Errorf("overlay %v: %s allowed %v, want %v", overlay, s, got, want)
			}
		}
	}
}
