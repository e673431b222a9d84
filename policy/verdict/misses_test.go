package verdict_test

import (
	"math/rand/v2"
	"testing"

	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestNearest: each rule of an isolating policy either allows the packet or is in Nearest.
func TestNearest(t *testing.T) {
	near, allowed := 0, 0
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 9))
		state := policytest.State(r)
		e := verdict.New(state)
		for _, probe := range policytest.Probes(r, state, 2) {
			p := verdict.Packet{Src: probe.Src, Dst: probe.Dst, Proto: probe.Proto, Port: probe.Port}
			v := e.Evaluate(p)
			for d, side := range map[ruleset.Direction]verdict.Side{ruleset.Egress: v.Egress, ruleset.Ingress: v.Ingress} {
				if side.Unknown || side.Off || len(side.Either) > 0 {
					continue
				}
				missed := map[string]bool{}
				for _, n := range e.Nearest(d, p, false) {
					missed[n.Policy+" "+n.Field] = true
					near++
					for _, m := range n.Misses {
						if m.Why == "" || m.Change == "" || m.Field == "" || m.Kind == "" {
							t.Fatalf("seed %d: %+v: an empty field in %+v", seed, p, m)
						}
					}
				}
				for _, np := range side.Policies {
					for _, rule := range np.Rules {
						if rule.Allows() == missed[np.Name+" spec."+rule.Field] {
							t.Fatalf("seed %d: %+v: %s %s: allows: %v, missed: %v", seed, p, np.Name, rule.Field, rule.Allows(),
								missed[np.Name+" spec."+rule.Field])
						}
						if rule.Allows() {
							allowed++
						}
					}
				}
			}
		}
	}
	if near < 1000 || allowed < 1000 {
		t.Errorf("only %d near and %d allowing rules", near, allowed)
	}
}
