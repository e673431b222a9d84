package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/verdict"
)

// TestAround: for packets between two addresses, the part of the cluster that Around returns gives the same verdicts as
// the whole cluster.
func TestAround(t *testing.T) {
	denied, wouldDrop := 0, 0
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 21))
		was := policy.State{}
		now := policytest.State(r)
		e := policy.NewEngine(now.Node)
		for range 6 {
			e.Apply(policy.Difference(was.Objects, now.Objects))
			e.SetNodes(now.Nodes)
			e.SetEndpoints(now.Endpoints)
			var cache verdict.Cache
			whole := verdict.New(now)
			twice := map[netip.Addr]int{}
			for _, n := range now.Endpoints {
				for _, a := range n.Addresses {
					twice[a.Addr]++
				}
			}
			for _, p := range policytest.Probes(r, now, 1) {
				if twice[p.Src] > 1 || twice[p.Dst] > 1 { // on a real node, no two attachments have the same address
					continue
				}
				packet := verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}
				want, got := whole.Evaluate(packet), cache.New(e.Around([]netip.Addr{p.Src, p.Dst})).Evaluate(packet)
				if want.Allowed() != got.Allowed() || !cmp.Equal(want.WouldDrop(), got.WouldDrop()) {
					t.Fatalf("seed %d: with the whole cluster\n%s\nand with the part around the packet\n%s\n%s", seed, want, got,
						policytest.YAML(now))
				}
				if !want.Allowed() {
					denied++
				}
				wouldDrop += len(want.WouldDrop())
			}
			was = now
			next := policytest.Step(r, now, policy.Compile)
			next.Node = now.Node
			now = next
		}
	}
	if denied < 1000 || wouldDrop < 1000 {
		t.Errorf("%d packets are denied, and audited policies would drop %d: the test tests too little", denied, wouldDrop)
	}
}
