package overlay

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func gatePlan(e Encapsulation) Plan {
	nodes := []policy.Node{
		node("self", "172.20.1.10 2001:db8:1::10", "100.96.1.0/24", "fd00:96:1::/64"),
		node("near", "172.20.1.11 2001:db8:1::11", "100.96.2.0/24", "fd00:96:2::/64"),
		node("far", "172.20.2.12", "100.96.4.0/24", "100.96.5.0/25", "fd00:96:4::/64"),
	}
	return Compute("self", options(e), nodes,
		paths{netip.MustParsePrefix("172.20.1.0/24"), netip.MustParsePrefix("2001:db8:1::/64")})
}

func TestGate(t *testing.T) {
	for _, e := range []Encapsulation{Always, CrossSubnet, Never} {
		path := filepath.Join("testdata", "gate-"+string(e)+".txt")
		got := NewGate(gatePlan(e), []string{"cni0", "vethab", "cni0"}).String()
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s: %s", e, diff)
		}
	}
}

// TestGateIsKept: if Apply runs again, it changes nothing. If another program has changed the gate, Apply restores
// it.
func TestGateIsKept(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	apply := func(g Gate, want bool) {
		t.Helper()
		renewed, _, err := g.Apply()
		if err != nil || renewed != want {
			t.Fatalf("renewed %v, %v; want %v", renewed, err, want)
		}
	}
	listing := func() string {
		t.Helper()
		return nodetest.Run(t, "nft", "-s", "list", "table", "inet", "weir-tunnel") // without counters
	}
	g := NewGate(gatePlan(Always), []string{"cni0"})
	apply(g, true)
	apply(g, false)
	whole := listing()
	for _, change := range []string{
		"delete table inet weir-tunnel", "flush chain inet weir-tunnel way", "add rule inet weir-tunnel input accept",
		"insert rule inet weir-tunnel tunnel accept",
		"add chain inet weir-tunnel more", "add set inet weir-tunnel more { type ipv4_addr; }", "flush ruleset",
		"add table inet weir-tunnel { flags dormant; }",
		"add chain inet weir-tunnel input { type filter hook input priority -160; policy drop; }",
	} {
		nodetest.Run(t, "nft", strings.Fields(change)...)
		apply(g, true)
		if diff := cmp.Diff(whole, listing()); diff != "" {
			t.Errorf("after %s: %s", change, diff)
		}
	}
	for _, change := range []string{
		"flush set inet weir-tunnel nodes4", "add element inet weir-tunnel nodes4 { 192.0.2.77 }",
		"delete element inet weir-tunnel links { cni0 }",
		"flush set inet weir-tunnel tunnelled4", "add element inet weir-tunnel tunnelled6 { fd00:1::/64 }",
		"flush set inet weir-tunnel senders4",
		"add element inet weir-tunnel senders4 { 192.0.2.77 . 100.96.9.0-100.96.9.255 }",
		"add element inet weir-tunnel own4 { 100.99.0.0/16 }",
	} {
		nodetest.Run(t, "nft", change)
		apply(g, false)
		if diff := cmp.Diff(whole, listing()); diff != "" {
			t.Errorf("after %s: %s", change, diff)
		}
	}
	for _, other := range []Gate{
		NewGate(gatePlan(CrossSubnet), nil), NewGate(gatePlan(Never), nil),
		NewGate(Plan{Options: options(Always)}, nil), g,
	} {
		_, _, err := other.Apply()
		if err != nil {
			t.Fatal(err)
		}
		apply(other, false)
	}
	if diff := cmp.Diff(whole, listing()); diff != "" {
		t.Error(diff)
	}
	// While no node is known, an intact gate stays. A broken gate is replaced by one that accepts no tunnel
	// packets.
	empty := NewGate(Plan{Options: options(Always)}, nil)
	if err := empty.EnsureExists(); err != nil || listing() != whole {
		t.Errorf("%v: %s", err, listing())
	}
	nodetest.Run(t, "nft", "flush", "chain", "inet", "weir-tunnel", "tunnel")
	if err := empty.EnsureExists(); err != nil || strings.Contains(listing(), "172.20.2.12") {
		t.Errorf("%v: %s", err, listing())
	}
	apply(empty, false)
	for range 2 {
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if out := nodetest.Run(t, "nft", "list", "ruleset"); strings.Contains(out, "weir") {
		t.Errorf("left:\n%s", out)
	}
}

// TestGateThatCannotLog: if a kernel can't log, the gate has no log statements, and still counts as intact.
func TestGateThatCannotLog(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	g := NewGate(gatePlan(Always), nil)
	if err := g.replaceQuietly(); err != nil {
		t.Fatal(err)
	}
	if text := nodetest.Run(t, "nft", "list", "table", "inet", "weir-tunnel"); strings.Contains(text, "log prefix") ||
		!strings.Contains(text, "drop") {
		t.Errorf("the quiet gate is\n%s", text)
	}
	if replaced, _, err := g.Apply(); err != nil || replaced {
		t.Errorf("the quiet gate is replaced: %v, %v", replaced, err)
	}
	nodetest.RunEach(t, "nft insert rule inet weir-tunnel input accept")
	if replaced, _, err := g.Apply(); err != nil || !replaced {
		t.Errorf("a gate with another rule stays: %v, %v", replaced, err)
	}
}

// TestGateOfManyNodes: if there are as many nodes as Kubernetes supports, one transaction makes the table.
func TestGateOfManyNodes(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	p := Plan{Options: options(Always), NodeAddress: netip.MustParseAddr("172.20.255.1")}
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)})
		n := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(i>>8), byte(i), 0}), 24)
		p.Nodes = append(p.Nodes, a)
		p.Networks = append(p.Networks, n)
		p.Tunnelled = append(p.Tunnelled, n)
		p.Remotes = append(p.Remotes, Remote{Node: a.String(), Address: a, Network: n})
	}
	for _, want := range []bool{true, false} {
		if renewed, _, err := NewGate(p, nil).Apply(); renewed != want || err != nil {
			t.Fatalf("renewed %v, %v; want %v", renewed, err, want)
		}
	}
	p.Remotes = p.Remotes[2000:]
	for range 2 {
		if renewed, _, err := NewGate(p, nil).Apply(); renewed || err != nil {
			t.Fatalf("renewed %v, %v", renewed, err)
		}
	}
}
