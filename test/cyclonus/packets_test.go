package cyclonus

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/packettest"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

// TestPacketsIPv4: an IPv4 packet arrives if Cyclonus allows it, or if a pod sends it to itself. No other packet
// arrives.
func TestPacketsIPv4(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	bothBackends(t, "ipv4", ipv4)
}

// TestPacketsIPv6: an IPv6 packet arrives if Cyclonus allows it, or if a pod sends it to itself. No other packet
// arrives.
func TestPacketsIPv6(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	bothBackends(t, "ipv6", ipv6)
}

func bothBackends(t *testing.T, family string, in addresses) {
	t.Helper()
	node := packettest.NewNode(t, []endpoint.Address{{Subnet: in.subnet, Gateway: in.gateway}}, 80, 81)
	attached := map[string]netip.Addr{}
	testPackets(t, node, attached, "cyclonus-packets-"+family, in)
	node.Use(packettest.Nftables)
	testPackets(t, node, attached, "cyclonus-packets-nftables-"+family, in)
}

func testPackets(
	t *testing.T, node *packettest.Node, attached map[string]netip.Addr, title string, in addresses,
) {
	t.Helper()
	passed, packets := 0, 0
	cases := newWorld(t, in).cases()
	for i, c := range cases {
		w := newWorld(t, in)
		failed := false
		for n, s := range c.Steps {
			w.step(t, s)
			w.attach(node, attached)
			node.Enforce(w.state(t))
			sent, differences := w.send(t, node, s.Probe)
			packets += sent
			for _, d := range differences {
				failed = true
				t.Errorf("case %d (%s), step %d: %s", i+1, c.Description, n+1, d)
			}
		}
		if !failed {
			passed++
		}
	}
	t.Logf("%d packets", packets)
	fmt.Printf("%s: %d/%d\n", title, passed, len(cases))
}

func (w *world) attach(node *packettest.Node, attached map[string]netip.Addr) {
	var now []string
	for _, p := range w.Resources.Pods {
		now = append(now, p.PodString().String())
	}
	for key, addr := range attached {
		if !slices.Contains(now, key) {
			node.DelPod(strings.ReplaceAll(key, "/", "."), addr)
			delete(attached, key)
		}
	}
	for _, key := range now {
		if !attached[key].IsValid() {
			node.AddPod(strings.ReplaceAll(key, "/", "."), w.ips[key])
			attached[key] = w.ips[key]
		}
	}
}

func (w *world) send(t *testing.T, node *packettest.Node, p *generator.ProbeConfig) (sent int, differences []string) {
	t.Helper()
	var packets []verdict.Packet
	var expect []bool
	for _, want := range w.expected(p) {
		if want.Combined != probe.ConnectivityAllowed && want.Combined != probe.ConnectivityBlocked {
			t.Fatalf("a probe of a port that the pod doesn't have: %+v", want.Job)
		}
		packets = append(packets, packet(t, want.Job))
		expect = append(expect, want.Combined == probe.ConnectivityAllowed || want.Job.FromKey == want.Job.ToKey)
	}
	for i, got := range node.Send(packets, expect) {
		if got != expect[i] {
			differences = append(differences, fmt.Sprintf("%+v arrived: %v, expected: %v", packets[i], got, expect[i]))
		}
	}
	return len(packets), differences
}
