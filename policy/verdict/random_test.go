package verdict_test

import (
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

var (
	cases = flag.Int("cases", 3000, "how many random clusters the compiler and the evaluator are compared on")
	seed  = flag.Uint64("seed", 0, "compare them on the cluster of that seed only")
)

// TestRulesetsDoWhatPoliciesMean: on random clusters, the compiled rules give the same verdicts as the evaluator.
//
// To replay one cluster: go test ./policy/verdict -seed N
func TestRulesetsDoWhatPoliciesMean(t *testing.T) {
	if *seed != 0 {
		compare(t, *seed)
		return
	}
	policytest.OnAllProcessors(t, 1, *cases, func(seeds iter.Seq[uint64]) {
		for seed := range seeds {
			compare(t, seed)
		}
	})
	if !t.Failed() {
		fmt.Printf("oracle-random: %d cases, 0 differences\n", *cases)
		fmt.Printf("oracle-audit: %d would-drops of audited policies in %d cases, 0 differences\n", wouldDrops.Load(), *cases)
	}
	if *cases >= 1000 && wouldDrops.Load() < int64(*cases) {
		t.Errorf("only %d would-drops", wouldDrops.Load())
	}
}

var wouldDrops atomic.Int64

func compare(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 4))
	state := policytest.State(r)
	packets := policytest.Probes(r, state, 3)
	bounds := policytest.Bounds(r)
	if difference(state, bounds, packets) == nil {
		return
	}
	state = policytest.Shrink(state, func(s policy.State) bool { return difference(s, bounds, packets) != nil })
	p := difference(state, bounds, packets)
	v := verdict.New(state).Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
	t.Errorf("seed %d: the rules let %+v pass: %v. But the policies say:\n%s\n%s", seed, *p, !v.AllowedHere(), v,
		policytest.YAML(state))
}

func difference(s policy.State, b ruleset.Bounds, packets []ruleset.Packet) *ruleset.Packet {
	packets = policytest.At(s, packets)
	compiled := policy.Compile(s)
	merged := b.Merge(compiled, nil)
	var by []interface{ Allows(ruleset.Packet) bool }
	var audits []*ruleset.Simulator
	for _, rules := range []ruleset.Ruleset{compiled, merged} {
		simulator, err := ruleset.NewSimulator(rules)
		if err != nil {
			panic(err)
		}
		by, audits = append(by, simulator, ruleset.NewIndex(rules)), append(audits, simulator)
	}
	evaluator := verdict.New(s)
	without, all := evaluators(s)
	i := slices.IndexFunc(packets, func(p ruleset.Packet) bool {
		v := evaluator.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
		for _, rules := range by {
			if rules.Allows(p) != v.AllowedHere() {
				return true
			}
		}
		if without.Evaluate(v.Packet).Allowed() != v.Allowed() {
			return true
		}
		want := v.WouldDrop()
		if dropped := v.Allowed() && !all.Evaluate(v.Packet).Allowed(); dropped != (len(want) > 0) {
			return true
		}
		if uncertain(v) { // docs/audit.md says what is reported for uncertain pods
			return false
		}
		want = slices.DeleteFunc(want, func(d ruleset.Direction) bool {
			return d == ruleset.Egress && !v.Egress.Here || d == ruleset.Ingress && !v.Ingress.Here
		})
		for _, rules := range audits {
			if _, logged := rules.Audit(p); v.Allowed() && !slices.Equal(logged, want) {
				return true
			}
		}
		wouldDrops.Add(int64(len(want)))
		return false
	})
	if i < 0 {
		return nil
	}
	return &packets[i]
}

func evaluators(s policy.State) (without, all *verdict.Evaluator) {
	rest, enforced := s, s
	rest.Policies, enforced.Policies = nil, nil
	for _, np := range s.Policies {
		plain := np.DeepCopy()
		plain.Annotations = nil
		if audited, _ := policy.Audited(np); !audited {
			rest.Policies = append(rest.Policies, plain)
		}
		enforced.Policies = append(enforced.Policies, plain)
	}
	return verdict.New(rest), verdict.New(enforced)
}

func uncertain(v verdict.Verdict) bool { return len(v.Egress.Either)+len(v.Ingress.Either) > 0 }
