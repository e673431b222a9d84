package nftables

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

var (
	cases = flag.Int("cases", 300, "on how many random clusters the lowered rules are compared with the ruleset")
	seed  = flag.Uint64("seed", 0, "compare them on the cluster of that seed only")
)

// TestLoweredRulesDoWhatTheRulesetMeans: on random clusters, the rules in the kernel's form have the ruleset's
// verdicts. To replay one cluster: go test ./netfilter/nftables -run TestLoweredRules -seed N
func TestLoweredRulesDoWhatTheRulesetMeans(t *testing.T) {
	if *seed != 0 {
		compare(t, new(lowering), *seed)
		return
	}
	var next, packets atomic.Int64
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			var m lowering
			for i := next.Add(1); int(i) <= *cases && !t.Failed(); i = next.Add(1) {
				packets.Add(int64(compare(t, &m, uint64(i))))
			}
		})
	}
	wait.Wait()
	if !t.Failed() {
		fmt.Printf("oracle-nftables: %d cases, %d packets, 0 differences\n", *cases, packets.Load())
	}
}

func compare(t *testing.T, m *lowering, seed uint64) int {
	r := rand.New(rand.NewPCG(seed, 9))
	state := policytest.State(r)
	packets := policytest.At(state, policytest.Probes(r, state, 3))
	rules := policytest.Bounds(r).Merge(policy.Compile(state), nil)
	by, err := ruleset.NewSimulator(rules)
	if err != nil {
		panic(err)
	}
	kernel := newModel(m.lower(rules))
	for _, p := range packets {
		if got, want := kernel.allows(p), by.Allows(p); got != want {
			t.Errorf("seed %d: %+v passes: %v; by the ruleset: %v", seed, p, got, want)
			break
		}
	}
	return len(packets)
}
