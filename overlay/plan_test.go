package overlay

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/claims"
)

func node(name, addresses string, cidrs ...string) policy.Node {
	n := policy.Node{Name: name}
	for _, a := range strings.Fields(addresses) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func options(e Encapsulation) Options {
	return Options{Encapsulation: e, Port: conf.OverlayPort, VNI: conf.OverlayVNI}
}

func planned(self string, e Encapsulation, nodes []policy.Node, o *Overlay) Plan {
	settled, _ := claims.Settle(nodes, claims.Terms{Self: self})
	return Compute(self, options(e), settled, NewRoutes(o.h))
}

func applied(o *Overlay, p Plan) error {
	all, err := o.Apply(p)
	for _, r := range all.Refused {
		err = errors.Join(err, errors.New(r.String()))
	}
	return err
}

type paths []netip.Prefix

func (p paths) To(_, to netip.Addr) (Path, error) {
	return Path{MTU: 1500, OnLink: slices.ContainsFunc(p, func(n netip.Prefix) bool { return n.Contains(to) })}, nil
}

func (p paths) Uplink(netip.Addr) (Path, error) { return Path{MTU: 1400}, nil }

func peersOf(p Plan) (peers []string) {
	for _, r := range p.Remotes {
		how := map[bool]string{true: "direct", false: "tunnel"}[r.Direct]
		peers = append(peers, strings.Join([]string{r.Node, r.Network.String(), r.Address.String(), how}, " "))
	}
	return peers
}

func TestCompute(t *testing.T) {
	self := node("self", "172.20.1.10", "100.96.1.0/24")
	near, far := node("near", "172.20.1.11", "100.96.2.0/24"), node("far", "172.20.2.12", "100.96.3.0/24")
	subnet := paths{netip.MustParsePrefix("172.20.1.0/24")}
	for _, tc := range []struct {
		name     string
		e        Encapsulation
		nodes    []policy.Node
		peers    []string // each string has a node, a network, an address, and "direct" or "tunnel"
		problems []string
	}{
		{
			"always", Always,
			[]policy.Node{far, near, self},
			[]string{"far 100.96.3.0/24 172.20.2.12 tunnel", "near 100.96.2.0/24 172.20.1.11 tunnel"},
			nil,
		},
		{
			"crossSubnet", CrossSubnet,
			[]policy.Node{self, near, far},
			[]string{"far 100.96.3.0/24 172.20.2.12 tunnel", "near 100.96.2.0/24 172.20.1.11 direct"},
			nil,
		},
		{"never", Never, []policy.Node{self, near, far}, []string{"near 100.96.2.0/24 172.20.1.11 direct"}, nil},
		{
			"a node without podCIDR", Always,
			[]policy.Node{self, node("new", "172.20.1.13")},
			nil,
			[]string{"Node new: spec.podCIDRs"},
		},
		{
			"a node without address", Always,
			[]policy.Node{self, node("new", "", "100.96.4.0/24")},
			nil,
			[]string{"Node new: status.addresses"},
		},
		{
			"IPv6 only", Always,
			[]policy.Node{self, node("six", "fd00::1", "fd01::/64")},
			nil,
			[]string{"Node six: spec.podCIDRs: there is no network of a family"},
		},
		{
			"two families, where this node has one", Always,
			[]policy.Node{self, node("two", "172.20.1.13 fd00::1", "fd01::/64", "100.96.4.0/24")},
			[]string{"two 100.96.4.0/24 172.20.1.13 tunnel"},
			nil,
		},
		{
			"two networks", Always,
			[]policy.Node{self, node("two", "172.20.1.13", "100.96.4.0/24", "100.96.5.0/24")},
			[]string{"two 100.96.4.0/24 172.20.1.13 tunnel", "two 100.96.5.0/24 172.20.1.13 tunnel"},
			nil,
		},
		{
			"another address than before", Always,
			[]policy.Node{self, node("near", "172.20.1.91", "100.96.2.0/24")},
			[]string{"near 100.96.2.0/24 172.20.1.91 tunnel"},
			nil,
		},
		{
			"the same address and network as a node before it", Always,
			[]policy.Node{self, near, node("nearer", "172.20.1.11", "100.96.2.0/24")},
			[]string{"near 100.96.2.0/24 172.20.1.11 tunnel"},
			[]string{
				"Node nearer: status.addresses: the InternalIP 172.20.1.11",
				"Node nearer: spec.podCIDRs: the network 100.96.2.0/24",
			},
		},
		{
			"one of two networks overlaps", Always,
			[]policy.Node{self, near, node("two", "172.20.1.13", "100.96.2.128/25", "100.96.5.0/24")},
			[]string{"near 100.96.2.0/24 172.20.1.11 tunnel", "two 100.96.5.0/24 172.20.1.13 tunnel"},
			[]string{"Node two: spec.podCIDRs: the network 100.96.2.128/25 doesn't count"},
		},
		{
			"overlap with another", Always,
			[]policy.Node{self, node("z", "172.20.1.14", "100.96.2.0/25"), near},
			[]string{"near 100.96.2.0/24 172.20.1.11 tunnel"},
			[]string{"Node z: spec.podCIDRs: the network 100.96.2.0/25"},
		},
		{
			"overlap with the node's own", Always,
			[]policy.Node{node("a", "172.20.1.14", "100.96.0.0/16"), self, near},
			[]string{"near 100.96.2.0/24 172.20.1.11 tunnel"},
			[]string{"Node a: spec.podCIDRs: the network 100.96.0.0/16"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			settled, problems := claims.Settle(tc.nodes, claims.Terms{Self: "self"})
			plan := Compute("self", options(tc.e), settled, subnet)
			plan.Problems = append(plan.Problems, problems...)
			if diff := cmp.Diff(tc.peers, peersOf(plan)); diff != "" {
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
			if plan.NodeAddress != self.Addresses[0] || !slices.Equal(plan.Gateways, []netip.Addr{self.PodCIDRs[0].Addr()}) {
				t.Errorf("local %s, gateways %s", plan.NodeAddress, plan.Gateways)
			}
		})
	}
	for field, n := range map[string]policy.Node{
		"spec.podCIDRs":    node("self", "172.20.1.10"),
		"status.addresses": node("self", "", "100.96.1.0/24"),
	} {
		settled, problems := claims.Settle([]policy.Node{n, near}, claims.Terms{Self: "self"})
		plan := Compute("self", options(Always), settled, subnet)
		if plan.NodeAddress.IsValid() || len(problems) != 1 || problems[0].Field != field ||
			!strings.Contains(problems[0].Message, "can't have pods") {
			t.Errorf("the node itself has no %s: %+v, %v", field, plan, problems)
		}
	}
	plan := Compute("who", options(Always), []policy.Node{near}, subnet)
	if plan.NodeAddress.IsValid() || len(plan.Problems) != 1 || plan.Problems[0].Object != "Node who" {
		t.Errorf("the node isn't in the cluster: %+v", plan)
	}
	if plan := Compute("who", options(Always), nil, subnet); len(plan.Problems) > 0 {
		t.Errorf("there are no Nodes: %v", plan.Problems)
	}
}

// TestComputeBothFamilies: if nodes have both families, all tunnels have the family of this node's first address.
func TestComputeBothFamilies(t *testing.T) {
	const four, six = "172.20.1.10 2001:db8:1::10", "2001:db8:1::10 172.20.1.10"
	near := node("near", "2001:db8:1::11 172.20.1.11", "100.96.2.0/24", "fd00:96:2::/64")
	far := node("far", "172.20.2.12 2001:db8:2::12", "100.96.3.0/24", "fd00:96:3::/64")
	half := node("half", "172.20.1.13", "fd00:96:4::/64")
	subnets := paths{netip.MustParsePrefix("172.20.1.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	for _, tc := range []struct {
		name, self string
		e          Encapsulation
		peers      []string
		problems   []string
	}{
		{"over IPv4", four, Always, []string{
			"far 100.96.3.0/24 172.20.2.12 tunnel", "far fd00:96:3::/64 172.20.2.12 tunnel",
			"half fd00:96:4::/64 172.20.1.13 tunnel",
			"near 100.96.2.0/24 172.20.1.11 tunnel", "near fd00:96:2::/64 172.20.1.11 tunnel",
		}, nil},
		{"over IPv6", six, Always, []string{
			"far 100.96.3.0/24 2001:db8:2::12 tunnel", "far fd00:96:3::/64 2001:db8:2::12 tunnel",
			"near 100.96.2.0/24 2001:db8:1::11 tunnel", "near fd00:96:2::/64 2001:db8:1::11 tunnel",
		}, []string{"Node half: status.addresses: there is no IPv6 InternalIP"}},
		{"crossSubnet", four, CrossSubnet, []string{
			"far 100.96.3.0/24 172.20.2.12 tunnel", "far fd00:96:3::/64 172.20.2.12 tunnel",
			"half fd00:96:4::/64 172.20.1.13 tunnel",
			"near 100.96.2.0/24 172.20.1.11 direct", "near fd00:96:2::/64 2001:db8:1::11 direct",
		}, nil},
		{"never", six, Never, []string{
			"near 100.96.2.0/24 172.20.1.11 direct", "near fd00:96:2::/64 2001:db8:1::11 direct",
		}, []string{"Node half: status.addresses: there is no IPv6 InternalIP"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := Compute("self", options(tc.e),
				[]policy.Node{far, half, near, node("self", tc.self, "fd00:96:1::/64", "100.96.1.0/24", "fd00:96:9::/64")}, subnets)
			if diff := cmp.Diff(tc.peers, peersOf(plan)); diff != "" {
				t.Errorf("peers: %s", diff)
			}
			if len(plan.Problems) != len(tc.problems) || len(tc.problems) > 0 &&
				!strings.HasPrefix(plan.Problems[0].String(), tc.problems[0]) {
				t.Errorf("problems: %v, want %v", plan.Problems, tc.problems)
			}
			first, _, _ := strings.Cut(tc.self, " ")
			if want := []netip.Addr{
				netip.MustParseAddr("fd00:96:1::"),
				netip.MustParseAddr("100.96.1.0"),
			}; plan.NodeAddress.String() != first || !slices.Equal(plan.Gateways, want) {
				t.Errorf("local %s, gateways %s", plan.NodeAddress, plan.Gateways)
			}
		})
	}
}

func TestMAC(t *testing.T) {
	if got := MAC(netip.MustParseAddr("172.20.1.10")).String(); got != "0e:58:ac:14:01:0a" {
		t.Errorf("172.20.1.10: %s", got)
	}
	// Addresses of two subnets may end in the same four bytes. Their MACs must differ nevertheless.
	a, b := MAC(netip.MustParseAddr("2001:db8:1::1")).String(), MAC(netip.MustParseAddr("2001:db8:2::1")).String()
	if a == b || !strings.HasPrefix(a, "0e:58:") || !strings.HasPrefix(b, "0e:58:") {
		t.Errorf("two IPv6 addresses have MACs %s and %s", a, b)
	}
}

// TestTwoAddressesWithOneMAC: if two nodes' IPv6 addresses give the same MAC, only the older node has a tunnel. The
// newer node has a problem.
func TestTwoAddressesWithOneMAC(t *testing.T) {
	seen := map[string]netip.Addr{}
	a := netip.MustParseAddr("2001:db8:2::1")
	for ; seen[MAC(a).String()] == (netip.Addr{}); a = a.Next() {
		seen[MAC(a).String()] = a
	}
	first := seen[MAC(a).String()].String()
	nodes := []policy.Node{
		node("self", "2001:db8:1::10", "fd00:96:1::/64"), node("z", first, "fd00:96:2::/64"),
		node("a", a.String(), "fd00:96:3::/64"),
	}
	plan := Compute("self", options(Always), nodes, paths{})
	if len(plan.Remotes) != 1 || plan.Remotes[0].Node != "z" || len(plan.Problems) != 1 ||
		plan.Problems[0].Object != "Node a" {
		t.Errorf("peers %v, problems %v", plan.Remotes, plan.Problems)
	}
}

func TestParse(t *testing.T) {
	for s, want := range map[string]Encapsulation{
		"": Always, "always": Always, "crossSubnet": CrossSubnet,
		"never": Never,
	} {
		if got, err := ParseEncapsulation(s); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := ParseEncapsulation("vxlan"); err == nil {
		t.Error("vxlan is no encapsulation")
	}
}
