package verdict_test

import (
	"math/rand/v2"
	"testing"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestTermsAreTheVerdict: the terms (the rules' peers and ports) at both ends give the same verdicts as Evaluate.
func TestTermsAreTheVerdict(t *testing.T) {
	allowed, denied := 0, 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 13))
		s := policytest.State(r)
		for range r.IntN(4) { // makes states in which pods have the same address or name
			s = policytest.Step(r, s, policy.Compile)
		}
		e := verdict.New(s)
		for _, p := range policytest.Probes(r, s, 2) {
			packet := verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}
			want := e.Evaluate(packet)
			egress := allows(e, ruleset.Egress, packet)
			ingress := allows(e, ruleset.Ingress, packet)
			if egress != want.Egress.Allowed() || ingress != want.Ingress.Allowed() {
				t.Fatalf("seed %d: egress %v, ingress %v, but\n%s\n%s", seed, egress, ingress, want, policytest.YAML(s))
			}
			if egress && ingress {
				allowed++
			} else {
				denied++
			}
		}
	}
	if allowed < 1000 || denied < 1000 {
		t.Errorf("%d packets are allowed and %d denied: the test tests too little", allowed, denied)
	}
}

func allows(e *verdict.Evaluator, d ruleset.Direction, p verdict.Packet) bool {
	src, dst := e.At(p.Src), e.At(p.Dst)
	subject, peer := src, dst
	if d == ruleset.Ingress {
		subject, peer = dst, src
	}
	i := e.Isolation(d, subject)
	for _, one := range i.Either {
		some := false
		for _, t := range one.Terms {
			some = some || t.Means(peer) && t.Opens(p.Proto, p.Port, dst)
		}
		if !some {
			return false
		}
	}
	return !i.Closed
}
