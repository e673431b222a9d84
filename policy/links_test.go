package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
)

// TestSelf: an isolated pod reaches itself, on weir's bridge and behind other plugins. A packet that another pod or
// host sends with the pod's address as its source doesn't reach the pod.
func TestSelf(t *testing.T) {
	simulator, err := ruleset.NewSimulator(policy.Compile(golden.Load(t, "testdata/other-plugins.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	uplink := ruleset.Link{In: "eth0"}
	ours, routed := ruleset.Link{In: conf.Bridge}, ruleset.Link{In: "veth1"}
	bridged, other := ruleset.Link{In: "cni0", Port: "veth2"}, ruleset.Link{In: "cni0", Port: "veth3"}
	for _, own := range []struct {
		addrs []string
		link  ruleset.Link
	}{
		{[]string{"10.88.0.2", "fd00:10:88::2"}, ours},
		{[]string{"10.88.0.3", "fd00:10:88::3"}, routed},
		{[]string{"10.88.0.4", "fd00:10:88::4"}, bridged},
	} {
		for _, addr := range own.addrs {
			a := netip.MustParseAddr(addr)
			for _, from := range []ruleset.Link{ours, routed, bridged, other, uplink} {
				if from == ours && own.link != ours {
					continue // the guard drops these packets
				}
				p := ruleset.Packet{
					In: from.In, InPort: from.Port, Out: own.link.In, Src: a, Dst: a, Proto: ruleset.TCP, Port: 80, Translated: true,
				}
				if got := simulator.Allows(p); got != (from == own.link) {
					t.Errorf("%+v passes: %v", p, got)
				}
			}
		}
	}
}

// TestSendersOfOtherPlugins: if a link belongs to one pod, a packet from the link is dropped unless its source is an
// address of the pod.
func TestSendersOfOtherPlugins(t *testing.T) {
	simulator, err := ruleset.NewSimulator(policy.Compile(golden.Load(t, "testdata/other-plugins.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{"10.88.0.5", "192.0.2.9", "127.0.0.1"} {
		for _, dst := range []string{"10.88.0.5", "192.0.2.1", "192.0.2.2"} {
			p := ruleset.Packet{
				In:    "veth1",
				Out:   "eth0",
				Src:   netip.MustParseAddr(src),
				Dst:   netip.MustParseAddr(dst),
				Proto: ruleset.UDP,
				Port:  53,
			}
			if dst == "192.0.2.2" {
				p.Out = ""
			}
			if simulator.Allows(p) {
				t.Errorf("%+v passes", p)
			}
		}
	}
}

// TestLinkLocalOfIPv4Pods: pods on another plugin's bridge don't reach each other by link-local addresses. This is so
// even if only other pods of the node have IPv6 addresses.
func TestLinkLocalOfIPv4Pods(t *testing.T) {
	var state policy.State
	for _, e := range golden.Load(t, "testdata/other-plugins.yaml").Endpoints {
		if e.Chained && e.BridgeIf == "" {
			continue // a routed pod
		}
		if e.Chained {
			e.Addresses = slices.DeleteFunc(e.Addresses, func(a policy.Address) bool { return a.Addr.Is6() })
		}
		state.Endpoints = append(state.Endpoints, e)
	}
	simulator, err := ruleset.NewSimulator(policy.Compile(state))
	if err != nil {
		t.Fatal(err)
	}
	p := ruleset.Packet{
		In: "cni0", InPort: "veth2", Out: "cni0", Src: netip.MustParseAddr("fe80::2"), Dst: netip.MustParseAddr("fe80::3"),
		Proto: ruleset.TCP, Port: 80,
	}
	if simulator.Allows(p) {
		t.Errorf("%+v passes", p)
	}
	if p.Dst = netip.MustParseAddr("ff02::16"); !simulator.Allows(p) {
		t.Errorf("%+v doesn't pass", p)
	}
}

// TestLoopback: packets from pods to the node's loopback addresses are dropped. But a packet passes if a rule on the
// node has translated its destination.
func TestLoopback(t *testing.T) {
	state := golden.Load(t, "testdata/other-plugins.yaml")
	state.Policies = nil
	simulator, err := ruleset.NewSimulator(policy.Compile(state))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		src  string
		link ruleset.Link
	}{
		{"10.88.0.2", ruleset.Link{In: conf.Bridge}},
		{"fd00:10:88::2", ruleset.Link{In: conf.Bridge}},
		{"10.88.0.3", ruleset.Link{In: "veth1"}},
		{"fd00:10:88::3", ruleset.Link{In: "veth1"}},
		{"10.88.0.4", ruleset.Link{In: "cni0", Port: "veth2"}},
		{"192.0.2.77", ruleset.Link{In: "cni0", Port: "veth2"}},
	} {
		p := ruleset.Packet{
			In: tc.link.In, InPort: tc.link.Port, Src: netip.MustParseAddr(tc.src), Dst: netip.MustParseAddr("127.0.0.7"),
			Proto: ruleset.TCP, Port: 80,
		}
		if p.Src.Is6() {
			p.Dst = netip.IPv6Loopback()
		}
		if simulator.Allows(p) {
			t.Errorf("%+v passes", p)
		}
		if p.Translated = true; !simulator.Allows(p) {
			t.Errorf("%+v doesn't pass", p)
		}
	}
}
