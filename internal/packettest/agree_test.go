package packettest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	states     = flag.Int("states", 10, "with how many random states packets are sent through both backends")
	firstState = flag.Uint64("first", 1, "the seed of the first of these states")
)

// TestBackendsAgree sends the same packets through the rules of iptables and of nftables, in the same random clusters.
// With each backend, the packets that the policies allow must arrive, and no others. iptables-legacy and iptables-nft
// take turns. To repeat one state:
//
//	go test ./internal/packettest -run TestBackendsAgree -v -first SEED -states 1
func TestBackendsAgree(t *testing.T) {
	onNodes(t, func(t *testing.T, n *Node, p part) { backendsAgree(t, n, p.of(*firstState, uint64(*states))) })
}

func backendsAgree(t *testing.T, n *Node, all span) {
	t.Helper()
	const block = 20 // how many states run with one backend before the next backend has its turn
	sent := 0
	for from := all.first; from < all.end && !t.Failed(); {
		number := (from + block - 1) / block // seeds from 1 to 20 are block 1
		to := min(all.end, number*block+1)
		arrived := map[uint64][]bool{}
		for _, name := range []Name{Names[(number+1)%2], Nftables} {
			n.Use(name)
			for seed := from; seed < to; seed++ {
				headers, expect, got := n.arrivals(seed)
				for j, h := range headers {
					if got[j] != expect[j] || arrived[seed] != nil && got[j] != arrived[seed][j] {
						t.Errorf("seed %d, %s: %+v arrived: %v; the policies allow it: %v", seed, name, h, got[j], expect[j])
						return
					}
				}
				if arrived[seed] != nil {
					sent += len(got)
				}
				arrived[seed] = got
			}
		}
		from = to
	}
	fmt.Printf("random-backends: %d states, %d packets through each of both backends, 0 differences\n", all.len(), sent)
}

// arrivals enforces the policies of a random cluster and sends packets between its pods. For each packet, it returns
// whether the packet should arrive, and whether it has arrived.
func (n *Node) arrivals(seed uint64) (headers []verdict.Packet, expect, arrived []bool) {
	n.Helper()
	s := randomState(seed)
	n.Bounds = policytest.Bounds(rand.New(rand.NewPCG(seed, 8)))
	var packets []ruleset.Packet
	if packets = probes(n, s, policytest.Probes(rand.New(rand.NewPCG(seed, 7)), s, 10)); len(packets) > mostOfAState {
		packets = packets[:mostOfAState]
	}
	n.Enforce(s)
	evaluator := verdict.New(s)
	for _, p := range packets {
		headers = append(headers, header(p))
		expect = append(expect, evaluator.Evaluate(header(p)).AllowedHere())
	}
	return headers, expect, n.Send(headers, expect)
}

// mostOfAState is the largest number of packets that are sent in one cluster. With this limit, the test has time for
// many clusters.
const mostOfAState = 200

// TestHasPods: after another program has changed the set of all pods, HasPods reports whether the set has entries.
// With each backend, this is so after Read, and after Refresh, which reads the kernel's state in parts.
func TestHasPods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	type backend interface {
		Backend
		Read(ctx context.Context) error
		Refresh(ctx context.Context, pause func() bool) (done bool, err error)
		HasPods(f conf.Family) bool
	}
	opened := func(name Name) backend { return open(t, name).(backend) }
	type change struct {
		command string
		has     bool
	}
	for name, changes := range map[Name][]change{
		IptablesNFT: {
			{"ipset create weir-pods6 hash:ip family inet6", false},
			{"ipset add weir-pods6 fd00::1", true},
			{"ipset add weir-pods6 fd00::2", true},
			{"ipset flush weir-pods6", false},
			{"ipset add weir-pods6 fd00::3", true},
			{"ipset destroy weir-pods6", false},
		},
		Nftables: {
			{"nft 'add table ip6 weir; add set ip6 weir weir-pods6 { type ipv6_addr; }'", false},
			{"nft 'add element ip6 weir weir-pods6 { fd00::1 }'", true},
			{"nft flush set ip6 weir weir-pods6", false},
			{"nft 'add element ip6 weir weir-pods6 { fd00::3 }'", true},
			{"nft delete table ip6 weir", false},
		},
	} {
		b := opened(name)
		apply := func(s policy.State, verify netfilter.Verify) {
			t.Helper()
			if _, err := b.Apply(t.Context(), policy.Compile(s), verify); err != nil {
				t.Fatal(name, err)
			}
		}
		apply(policy.State{}, netfilter.All)
		for _, c := range changes {
			nodetest.Run(t, "sh", "-c", c.command)
			other := opened(name)
			if err := other.Read(t.Context()); err != nil {
				t.Fatal(name, err)
			}
			if done, err := b.Refresh(t.Context(), func() bool { return false }); err != nil || !done {
				t.Fatal(name, done, err)
			}
			if got, read := b.HasPods(conf.IPv6), other.HasPods(conf.IPv6); got != c.has || read != c.has {
				t.Errorf("%s, after %q: %v in parts and %v in one part, want %v", name, c.command, got, read, c.has)
			}
			other.Close()
		}
		// Apply doesn't delete entries that belong to no pod, even if a pod had them before.
		apply(policytest.DualStack(), netfilter.All)
		for range 3 {
			if !b.HasPods(conf.IPv6) {
				t.Errorf("%s: the set has pods, and HasPods says that it hasn't", name)
			}
			apply(policy.State{Strays6: true}, netfilter.Trust)
		}
		(&Node{TB: t, Backend: b}).Remove()
		b.Close()
	}
}
