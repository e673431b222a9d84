package overlay

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/policy"
)

func node(name, address string, cidrs ...string) policy.Node {
	n := policy.Node{Name: name}
	if address != "" {
		n.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func TestCompute(t *testing.T) {
	self := node("self", "172.20.1.10", "100.96.1.0/24")
	near, far := node("near", "172.20.1.11", "100.96.2.0/24"), node("far", "172.20.2.12", "100.96.3.0/24")
	sameSubnet := func(a netip.Addr) bool { return netip.MustParsePrefix("172.20.1.0/24").Contains(a) }
	for _, tc := range []struct {
		name     string
		e        Encapsulation
		nodes    []policy.Node
		peers    []string // node network address direct
		problems []string
	}{
		{"always", Always, []policy.Node{far, near, self}, []string{"far 100.96.3.0/24 172.20.2.12 tunnel", "near 100.96.2.0/24 172.20.1.11 tunnel"}, nil},
		{"crossSubnet", CrossSubnet, []policy.Node{self, near, far}, []string{"far 100.96.3.0/24 172.20.2.12 tunnel", "near 100.96.2.0/24 172.20.1.11 direct"}, nil},
		{"never", Never, []policy.Node{self, near, far}, []string{"near 100.96.2.0/24 172.20.1.11 direct"}, nil},
		{"a node without podCIDR", Always, []policy.Node{self, node("new", "172.20.1.13")}, nil, []string{"Node new: spec.podCIDRs"}},
		{"a node without address", Always, []policy.Node{self, node("new", "", "100.96.4.0/24")}, nil, []string{"Node new: status.addresses"}},
		{"IPv6 only", Always, []policy.Node{self, node("six", "fd00::1", "fd01::/64")}, nil, []string{"Node six: status.addresses"}},
		{"two networks", Always, []policy.Node{self, node("two", "172.20.1.13", "100.96.4.0/24", "100.96.5.0/24")}, []string{"two 100.96.4.0/24 172.20.1.13 tunnel", "two 100.96.5.0/24 172.20.1.13 tunnel"}, nil},
		{"overlap with another", Always, []policy.Node{self, node("z", "172.20.1.14", "100.96.2.0/25"), near}, []string{"near 100.96.2.0/24 172.20.1.11 tunnel"}, []string{"Node z: spec.podCIDRs: 100.96.2.0/25 overlaps 100.96.2.0/24 of node near"}},
		{"overlap with the node's own", Always, []policy.Node{node("a", "172.20.1.14", "100.96.0.0/16"), self, near}, []string{"near 100.96.2.0/24 172.20.1.11 tunnel"}, []string{"Node a: spec.podCIDRs: 100.96.0.0/16 overlaps 100.96.1.0/24 of node self"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := Compute("self", tc.e, tc.nodes, sameSubnet)
			var peers []string
			for _, p := range plan.Peers {
				how := map[bool]string{true: "direct", false: "tunnel"}[p.Direct]
				peers = append(peers, strings.Join([]string{p.Node, p.Network.String(), p.Address.String(), how}, " "))
			}
			if diff := cmp.Diff(tc.peers, peers); diff != "" {
				t.Errorf("peers: %s", diff)
			}
			if len(plan.Problems) != len(tc.problems) {
				t.Fatalf("problems: %v, want %v", plan.Problems, tc.problems)
			}
			for i, p := range plan.Problems {
				if !strings.HasPrefix(p.String(), tc.problems[i]) {
					t.Errorf("problem %q, want %q", p, tc.problems[i])
				}
			}
			if plan.Local != self.Addresses[0] || plan.Gateway != self.PodCIDRs[0].Addr() {
				t.Errorf("local %s, gateway %s", plan.Local, plan.Gateway)
			}
		})
	}
	if plan := Compute("who", Always, []policy.Node{near}, sameSubnet); plan.Local.IsValid() {
		t.Error("a node that isn't in the cluster has an overlay")
	}
}

func TestParse(t *testing.T) {
	for s, want := range map[string]Encapsulation{"": Always, "always": Always, "crossSubnet": CrossSubnet, "never": Never} {
		if got, err := Parse(s); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := Parse("vxlan"); err == nil {
		t.Error("vxlan is no encapsulation")
	}
}
