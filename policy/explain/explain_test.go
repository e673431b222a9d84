package explain

import (
	"math/rand/v2"
	"testing"

	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestAgreesWithTheEvaluator: on random clusters, the explanation of a connection between two addresses has the
// verdicts of an evaluator of the whole state, and each side that drops says what would allow the connection.
func TestAgreesWithTheEvaluator(t *testing.T) {
	results := map[Result]int{}
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 11))
		state := policytest.State(r)
		c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
		whole := verdict.New(state)
		for _, p := range policytest.Probes(r, state, 1) {
			if p.Port == 0 || (p.Proto != ruleset.TCP && p.Proto != ruleset.UDP) {
				continue
			}
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: p.Port, Proto: p.Proto},
			}
			e, err := Explain(c, q)
			if err != nil || len(e.Paths) != 1 {
				t.Fatalf("seed %d: %+v: %v, %+v", seed, p, err, e)
			}
			path := e.Paths[0]
			v := whole.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
			if fromNode := path.Sides[1].Reason == FromNode; !fromNode && (path.Result == Allowed) != v.Allowed() {
				t.Fatalf("seed %d: %+v\nexplained: %+v\nevaluated:\n%s", seed, p, path, v)
			}
			for _, s := range path.Sides {
				if s.Result == Dropped && s.Reason == Isolated && len(s.Nearest) == 0 && s.Change == "" {
					t.Errorf("seed %d: %+v: nothing says what would allow it: %+v", seed, p, s)
				}
			}
			results[e.Result]++
		}
	}
	if results[Allowed] < 500 || results[Dropped] < 500 {
		t.Errorf("too few cases: %v", results)
	}
}

// TestConcerns: an agent that gives only the pods that Concerns names gets the same explanation.
func TestConcerns(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 12))
		state := policytest.State(r)
		c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
		for _, p := range policytest.Probes(r, state, 1)[:4] {
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: 80, Proto: ruleset.TCP},
			}
			want, err := Explain(c, q)
			if err != nil {
				t.Fatal(err)
			}
			fewer := c
			fewer.Pods = nil
			for range 2 { // as the agent does
				concerns := q.Concerns(fewer)
				fewer.Pods = nil
				for i := range c.Pods {
					if o := &c.Pods[i]; concerns(o) {
						fewer.Pods = append(fewer.Pods, *o)
					}
				}
			}
			got, err := Explain(fewer, q)
			if err != nil || got.Paths[0].Result != want.Paths[0].Result {
				t.Fatalf("seed %d: %+v: %v\ngot  %+v\nwant %+v", seed, p, err, got, want)
			}
		}
	}
}
