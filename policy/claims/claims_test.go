package claims

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func claimant(name string, minute int, addresses, networks string) policy.Node {
	n := policy.Node{Name: name}
	if minute >= 0 {
		n.Created = time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)
	}
	for _, a := range strings.Fields(addresses) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(networks) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func TestSettle(t *testing.T) {
	honest := []policy.Node{
		claimant("n1", 1, "172.20.1.10 2001:db8:1::10", "100.96.1.0/24 fd00:96:1::/64"),
		claimant("n2", 2, "172.20.2.10 2001:db8:2::10", "100.96.2.0/24 fd00:96:2::/64"),
		claimant("self", 3, "172.20.3.10 2001:db8:3::10", "100.96.3.0/24 fd00:96:3::/64"),
	}
	within := []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:96::/32")}
	for _, tc := range []struct {
		addresses, networks string // the claims of a Node
		kept                string // the claims that are valid
		within              []netip.Prefix
	}{
		{
			addresses: "172.20.4.10 2001:db8:4::10",
			networks:  "100.96.4.0/24 fd00:96:4::/64",
			kept:      "172.20.4.10 2001:db8:4::10 100.96.4.0/24 fd00:96:4::/64",
		},
		{addresses: "172.20.4.10 172.20.4.10", networks: "100.96.4.0/24 100.96.4.0/25", kept: "172.20.4.10 100.96.4.0/24"},
		{
			addresses: "0.0.0.0 224.0.0.1 127.0.0.1 169.254.1.1 255.255.255.255 0.1.2.3 239.1.1.1 172.20.4.10",
			kept:      "172.20.4.10",
		},
		{addresses: ":: ::1 fe80::1 ff02::1 ::ffff:10.0.0.1 2001:db8:4::10", kept: "2001:db8:4::10"},
		{addresses: "172.20.1.10 172.20.2.10 172.20.3.10 2001:db8:3::10"},
		{addresses: "100.96.1.7 100.96.3.0 fd00:96:2::9"},
		{
			networks: "0.0.0.0/0 0.0.0.0/1 127.0.0.0/8 128.0.0.0/1 224.0.0.0/24 169.254.0.0/24 255.255.255.0/24 100.96.4.0/24",
			kept:     "100.96.4.0/24",
		},
		{networks: "::/0 8000::/1 ::/96 fe80::/64 ff00::/8 ::ffff:0:0/97 fd00:96:4::/64", kept: "fd00:96:4::/64"},
		{networks: "172.20.0.0/16 172.20.1.0/24 172.20.1.10/32 172.20.3.10/32 2001:db8::/32 2001:db8:3::10/128"},
		{networks: "100.96.1.0/24 100.96.2.0/32 100.96.3.128/25 100.96.0.0/16 fd00:96:1::/64 fd00:96::/32 fd00:96:3::7/128"},
		{addresses: "10.0.0.1", networks: "10.0.0.0/24 100.96.4.0/24", kept: "10.0.0.1 100.96.4.0/24"},
		{networks: "8.8.8.8/32 100.96.4.0/24 2001:db8:9::/64", kept: "8.8.8.8/32 100.96.4.0/24 2001:db8:9::/64"},
		{networks: "8.8.8.8/32 100.96.4.0/24 2001:db8:9::/64 100.0.0.0/8", kept: "100.96.4.0/24", within: within},
	} {
		for _, evil := range []policy.Node{
			claimant("a-evil", 4, tc.addresses, tc.networks),
			claimant("z-evil", -1, tc.addresses, tc.networks),
		} {
			got, problems := Settle(slices.Concat([]policy.Node{evil}, honest), Terms{Self: "self", Within: tc.within})
			if diff := cmp.Diff(honest, got[:3], cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("%s %s harms others: %s", tc.addresses, tc.networks, diff)
			}
			var kept []string
			for _, a := range got[3].Addresses {
				kept = append(kept, a.String())
			}
			for _, p := range got[3].PodCIDRs {
				kept = append(kept, p.String())
			}
			if got := strings.Join(kept, " "); got != tc.kept {
				t.Errorf("of %s %s counts %q, want %q", tc.addresses, tc.networks, got, tc.kept)
			}
			if tc.addresses == "" || tc.networks == "" {
				missing := map[bool]string{true: "status.addresses", false: "spec.podCIDRs"}[tc.addresses == ""]
				i := slices.IndexFunc(problems, func(p ruleset.Problem) bool {
					return p.Field == missing && strings.Contains(p.Message, "its pods can't be reached")
				})
				if i < 0 {
					t.Fatalf("%s %s: nothing is said of %s: %v", tc.addresses, tc.networks, missing, problems)
				}
				problems = slices.Delete(problems, i, i+1)
			}
			refused := len(slices.Compact(strings.Fields(tc.addresses))) + len(strings.Fields(tc.networks)) - len(kept)
			if len(problems) != refused {
				t.Errorf("%s %s: %d problems, want %d: %v", tc.addresses, tc.networks, len(problems), refused, problems)
			}
			for _, p := range problems {
				if p.Object != "Node "+evil.Name {
					t.Errorf("%s is no problem of %s", p, evil.Name)
				}
			}
		}
	}
}

// TestSettleOrder: if two Nodes make the same claim, the older Node's claim is valid. A Node without a creation time
// counts as the youngest. Among Nodes of the same age, this node (Terms.Self) comes first, and then the order of names
// decides.
func TestSettleOrder(t *testing.T) {
	for _, tc := range []struct {
		first, second int // minutes of the creation times; -1 stands for no creation time
		names         [2]string
		keeps         int
	}{
		{1, 2, [2]string{"z", "a"}, 0},
		{2, 1, [2]string{"a", "z"}, 1},
		{1, 1, [2]string{"a", "z"}, 0},
		{1, 1, [2]string{"z", "a"}, 1},
		{1, 1, [2]string{"z", "self"}, 1},
		{1, 2, [2]string{"z", "self"}, 0},
		{-1, 9, [2]string{"a", "z"}, 1},
		{-1, -1, [2]string{"a", "self"}, 1},
	} {
		nodes := []policy.Node{
			claimant(tc.names[0], tc.first, "172.20.1.10", "100.96.1.0/24"),
			claimant(tc.names[1], tc.second, "172.20.1.10", "100.96.1.0/24"),
		}
		for range 2 {
			slices.Reverse(nodes)
			got, problems := Settle(nodes, Terms{Self: "self"})
			if got[0].Name != tc.names[tc.keeps] || len(got[0].Addresses) != 1 ||
				len(got[1].Addresses)+len(got[1].PodCIDRs) > 0 || len(problems) != 2 {
				t.Errorf("%v: %v, %v", tc, got, problems)
			}
		}
	}
}

// TestWhatCountedBefore: Node a is edited so that its claims overlap those of Node z. The claims of z that were valid
// before stay valid, even if a is older. An address that z didn't claim before is a new claim, and so are all claims
// of a z that was deleted and created again. If such a claim overlaps a claim of a, the older Node's claim is valid.
func TestWhatCountedBefore(t *testing.T) {
	const address, network = "172.20.1.10", "100.96.1.0/24"
	victim := claimant("z", 5, address, network)
	before, _ := Settle([]policy.Node{claimant("a", 1, "172.20.9.10", "100.96.9.0/24"), victim}, Terms{})
	for _, tc := range []struct {
		minute             int
		address, network   string
		victim             policy.Node
		addresses, podCIDR int // how many claims of the victim are valid
	}{
		{1, address, network, victim, 1, 1},
		{-1, address, network, victim, 1, 1},
		{1, "172.20.9.10", "172.20.0.0/21", victim, 1, 1},
		{1, "100.96.1.2", "100.96.1.2/32", victim, 1, 1},
		{1, "100.96.1.2", "100.96.0.0/16", victim, 1, 1},
		{1, address, network, claimant("z", 6, address, network), 0, 0},
		{7, address, network, claimant("z", 6, address, network), 1, 1},
		{1, address, network, claimant("z", 5, "172.20.1.11", network), 1, 1},
		{1, "172.20.1.11", network, claimant("z", 5, "172.20.1.11", network), 0, 1},
	} {
		nodes := []policy.Node{claimant("a", tc.minute, tc.address, tc.network), tc.victim}
		got, problems := Settle(nodes, Terms{Before: before})
		i := slices.IndexFunc(got, func(n policy.Node) bool { return n.Name == "z" })
		if len(got[i].Addresses) != tc.addresses || len(got[i].PodCIDRs) != tc.podCIDR {
			t.Errorf("%v: %v, %v", tc, got, problems)
		}
	}
}

// TestOneNodesManyClaims: a Node states 10,000 addresses and 10,000 networks. Settle finds at most 2*maxClaims of these
// claims valid, and reports at most 2*maxClaims+2 problems.
func TestOneNodesManyClaims(t *testing.T) {
	evil := claimant("evil", 2, "", "")
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{100, 96, byte(i >> 8), byte(i)})
		evil.Addresses, evil.PodCIDRs = append(evil.Addresses, a), append(evil.PodCIDRs, hostPrefix(a))
	}
	for _, nodes := range [][]policy.Node{{evil}, {evil, claimant("n1", 1, "172.20.1.10", "100.96.0.0/16")}} {
		got, problems := Settle(nodes, Terms{Self: "n1"})
		if last := got[len(got)-1]; len(last.Addresses)+len(last.PodCIDRs) > 2*maxClaims || len(problems) > 2*maxClaims+2 {
			t.Errorf("%d addresses, %d networks and %d problems", len(last.Addresses), len(last.PodCIDRs), len(problems))
		}
	}
}

// TestLocalAddresses: another node's network is invalid if it contains an address that this node needs.
func TestLocalAddresses(t *testing.T) {
	var local []UnderlayAddress
	for _, a := range []string{"172.17.0.1", "172.20.1.1", "2001:db8::1"} {
		local = append(local, UnderlayAddress{netip.MustParseAddr(a), "an address that this node needs"})
	}
	for network, counts := range map[string]bool{
		"172.17.0.0/24": false, "172.17.0.1/32": false, "172.16.0.0/13": false, "172.20.1.0/29": false,
		"2001:db8::/64": false, "172.17.0.2/32": true,
		"172.17.1.0/24": true, "172.20.1.2/31": true, "2001:db8:1::/64": true, "2001:db8::2/127": true,
		"172.20.0.0/24": true, "8.8.8.0/24": true,
	} {
		for _, before := range [][]policy.Node{nil, {claimant("n", 1, "", network)}} {
			for name, want := range map[string]bool{"n": counts, "self": true} {
				got, problems := Settle([]policy.Node{claimant(name, 1, "172.30.0.1", network)},
					Terms{Self: "self", Local: local, Before: before})
				if (len(got[0].PodCIDRs) == 1) != want {
					t.Errorf("%s of %s: %v, %v", network, name, got, problems)
				}
			}
		}
	}
}

// TestSettleAgreesWithComparingAll: Settle gives the same result as a simple function that compares each claim with all
// others.
func TestSettleAgreesWithComparingAll(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var nodes []policy.Node
		for i := range 12 {
			n := claimant(fmt.Sprint("n", i), i, "", "")
			for range 2 {
				n.Addresses = append(n.Addresses, netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(16))}))
				n.PodCIDRs = append(n.PodCIDRs,
					netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(256))}), 22+r.IntN(11)).Masked())
			}
			nodes = append(nodes, n)
		}
		var taken, want, kept []netip.Prefix
		take := func(p netip.Prefix) {
			if !slices.ContainsFunc(taken, p.Overlaps) {
				taken, want = append(taken, p), append(want, p)
			}
		}
		for _, n := range nodes {
			for _, a := range n.Addresses {
				take(hostPrefix(a))
			}
			for _, p := range n.PodCIDRs {
				take(p)
			}
		}
		settled, _ := Settle(nodes, Terms{})
		for _, n := range settled {
			for _, a := range n.Addresses {
				kept = append(kept, hostPrefix(a))
			}
			kept = append(kept, n.PodCIDRs...)
		}
		if !slices.Equal(kept, want) {
			t.Fatalf("seed %d: %v, want %v", seed, kept, want)
		}
	}
}

func BenchmarkSettle5000Nodes(b *testing.B) {
	var nodes []policy.Node
	for i := range 5000 {
		nodes = append(nodes, claimant(fmt.Sprint("n", i), i, fmt.Sprintf("172.20.%d.%d", i/250, i%250+1),
			fmt.Sprintf("100.%d.%d.0/24 fd00:96:%x::/64", 64+i/256, i%256, i)))
	}
	for b.Loop() {
		if _, problems := Settle(nodes, Terms{Self: "n1"}); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}
