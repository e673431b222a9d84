package policy_test

import (
	"cmp"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	diff "github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

var (
	sequences = flag.Int("sequences", 200, "how many random sequences of 50 events TestEngineIsCompile tries")
	first     = flag.Uint64("first", 0, "the seed of the first of these sequences")
)

// TestEngineIsCompile: after each of many random events, the engine gives the same ruleset as Compile, and the engine's
// indexes are correct. If a sequence of events fails, the test looks for a shorter sequence that also fails, and prints
// the shorter one.
func TestEngineIsCompile(t *testing.T) {
	var events atomic.Int64
	policytest.OnAllProcessors(t, *first, *sequences, func(seeds iter.Seq[uint64]) {
		for seed := range seeds {
			events.Add(int64(trySequence(t, seed)))
		}
	})
	if !t.Failed() {
		t.Logf("engine-sequences: %d sequences, %d events, 0 differences", *sequences, events.Load())
	}
}

var highLimits = policy.LimitsOf(1<<15, 1<<13, 1<<20, 1<<16)

func trySequence(t *testing.T, seed uint64) (events int) {
	r := rand.New(rand.NewPCG(seed, 1))
	limits := highLimits
	switch r.IntN(4) {
	case 0:
		limits = policy.LimitsOf(1<<15, 1<<13, float64(10+r.IntN(40)), 4+r.IntN(12))
	case 1:
		limits = policy.LimitsOf(float64(5+r.IntN(20)), float64(3+r.IntN(10)), float64(10+r.IntN(40)), 20)
	}
	states := []policy.State{{}, policytest.State(r)}
	for range 49 {
		states = append(states, policytest.Step(r, states[len(states)-1], limits.Compile))
	}
	if step, _ := engineDiffers(limits, states); step < 0 {
		return len(states) - 1
	}
	states = shrinkStory(limits, states)
	step, difference := engineDiffers(limits, states)
	var story strings.Builder
	for i, s := range states {
		fmt.Fprintf(&story, "--- state %d, node %q, refused %v\n%s%s", i, s.Node, s.Refused, policytest.YAML(s), rest(s))
	}
	t.Errorf("seed %d: after state %d: %s\n%s", seed, step, difference, &story)
	return 0
}

func rest(s policy.State) string {
	var b strings.Builder
	for _, p := range s.Pods {
		fmt.Fprintf(&b, "# pod %s/%s: %v\n", p.Namespace, p.Name, p.Addresses)
	}
	for _, e := range s.Endpoints {
		fmt.Fprintf(&b, "# endpoint %+v\n", e)
	}
	return b.String()
}

// engineDiffers gives the states to an engine, one after the other. After each state, it compares the engine's
// ruleset with that of Compile, and checks the engine's indexes. At the end, it removes all objects, and checks that
// the engine keeps nothing. It returns the index of the first state after which a check fails, or -1 if all checks
// pass.
func engineDiffers(limits policy.Limits, states []policy.State) (step int, difference string) {
	e := policy.NewEngine(states[len(states)-1].Node)
	e.SetLimits(limits)
	r := rand.New(rand.NewPCG(uint64(len(states)), 2))
	was := policy.State{}
	var before ruleset.Ruleset
	var said string
	for i, now := range states {
		now.Node = states[len(states)-1].Node
		tell(r, e, was, now)
		if why := sliced(r, e, now); why != "" {
			return i, why
		}
		got := e.Ruleset()
		if d := differs(got, limits.Compile(now)); d != "" {
			return i, d
		}
		if wrong := e.Unsound(); len(wrong) > 0 {
			return i, strings.Join(wrong, "\n")
		}
		if i%10 == 0 { // not after each event, because writing the ruleset would take most of the test's time
			if said != "" && written(before) != said {
				return i, "an earlier ruleset has changed"
			}
			before, said = got, written(got)
		}
		was = now
	}
	tell(r, e, was, policy.State{})
	e.Ruleset()
	if left := e.Remains(); left != "" {
		return len(states) - 1, "after everything is gone, the engine still has " + left
	}
	return -1, ""
}

func tell(r *rand.Rand, e *policy.Engine, was, now policy.State) {
	parts := []func(){
		func() { e.SetNodes(now.Nodes) },
		func() { e.Apply(policy.Difference(was.Objects, now.Objects)) },
		func() { e.SetEndpoints(now.Endpoints) },
		func() { e.SetRefused(now.Refused) },
	}
	r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	var late *policy.Unparsed // policies that are parsed before other events, and given to the engine after them
	for _, part := range parts {
		part()
		switch r.IntN(4) {
		case 0:
			e.Changed()
		case 1:
			e.Ruleset()
		case 2: // the next event comes while large sets are incomplete, and large policies may be unparsed
			for range 1 + r.IntN(3) {
				if r.IntN(3) == 0 {
					e.SmallOf(float64(r.IntN(8)))
				}
				e.SliceOf(float64(1 + r.IntN(4)))
			}
		}
		if late != nil && r.IntN(2) == 0 {
			e.TakeParsed(late)
			late = nil
		}
		if next := e.NextUnparsed(); late == nil && next != nil {
			next.Parse()
			late = next
		}
	}
	if late != nil {
		e.TakeParsed(late)
	}
}

// sliced sometimes computes the ruleset in slices: SliceOf returns an unfinished ruleset after a limited amount of
// work. No slice may allow a packet that the whole ruleset denies.
func sliced(r *rand.Rand, e *policy.Engine, now policy.State) (wrong string) {
	if r.IntN(3) > 0 {
		return ""
	}
	limit, probe := float64(1+r.IntN(4)), r.IntN(4) == 0
	for i := 0; e.Changed() && r.IntN(8) > 0; i++ {
		got := e.SliceOf(limit)
		if r.IntN(4) == 0 {
			got = e.SmallOf(2 * limit)
		}
		if i > 1000 {
			return "the slices don't end"
		}
		if !probe {
			continue
		}
		want := highLimits.Compile(now)
		// If the kernel refuses parts, the slice can't be compared with the whole ruleset: the order of changes decides which
		// sets exist, and so which sets are refused.
		if len(now.Refused) > 0 {
			continue
		}
		allows, most := ruleset.NewIndex(got), ruleset.NewIndex(want)
		for _, p := range append(policytest.Packets(now), policytest.Probes(r, now, 1)...) {
			if allows.Allows(p) && !most.Allows(p) {
				return fmt.Sprintf("slice %d allows %+v", i, p)
			}
		}
	}
	return ""
}

func written(r ruleset.Ruleset) string {
	var b strings.Builder
	_ = r.Write(&b) // a Builder accepts all writes
	return b.String()
}

func differs(got, want ruleset.Ruleset) string {
	for _, r := range []*ruleset.Ruleset{&got, &want} {
		r.Problems = slices.SortedFunc(slices.Values(r.Problems), func(a, b ruleset.Problem) int {
			return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
		})
	}
	if sameRuleset(got, want) {
		return ""
	}
	if d := diff.Diff(strings.Split(written(want), "\n"), strings.Split(written(got), "\n")); d != "" {
		return "the engine has more (+) and less (-):\n" + d
	}
	return fmt.Sprintf("the text is the same, but not the fields. The engine has classes\n%+v\nCompile gives\n%+v",
		got.Classes, want.Classes)
}

func sameRuleset(a, b ruleset.Ruleset) bool {
	same := func(a, b ruleset.Set) bool {
		return a.Name == b.Name && a.Kind == b.Kind && a.Role == b.Role && a.Dispatch == b.Dispatch &&
			a.Opens == b.Opens && a.Family == b.Family && a.Entries.Equal(b.Entries)
	}
	return slices.EqualFunc(a.Sets, b.Sets, same) && slices.EqualFunc(a.Chains, b.Chains, ruleset.Chain.Equal) &&
		slices.Equal(a.Problems, b.Problems) && slices.EqualFunc(a.Classes, b.Classes, sameClass)
}

func sameClass(a, b ruleset.Class) bool {
	same := func(a, b []string) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }
	return a.Direction == b.Direction && a.Family == b.Family && a.Set == b.Set && a.Chain == b.Chain &&
		same(a.Policies, b.Policies) && same(a.Audited, b.Audited) && same(a.Pods, b.Pods)
}

func shrinkStory(limits policy.Limits, states []policy.State) []policy.State {
	fails := func(s []policy.State) bool { step, _ := engineDiffers(limits, s); return step >= 0 }
	for {
		shorter := smallerStories(states)
		i := slices.IndexFunc(shorter, fails)
		if i < 0 {
			return states
		}
		states = shorter[i]
	}
}

func smallerStories(states []policy.State) (all [][]policy.State) {
	for i := range states {
		if len(states) > 1 {
			all = append(all, slices.Delete(slices.Clone(states), i, i+1))
		}
	}
	names := map[string]bool{}
	each(states, func(kind, name string) bool { names[kind+name] = true; return false })
	for name := range names {
		all = append(all, each(states, func(kind, n string) bool { return kind+n == name }))
	}
	return all
}

func each(states []policy.State, drop func(kind, name string) bool) []policy.State {
	out := slices.Clone(states)
	for i := range out {
		s := &out[i]
		s.Pods = slices.DeleteFunc(slices.Clone(s.Pods), func(p policy.Pod) bool { return drop("pod ", p.Namespace+p.Name) })
		s.Namespaces = slices.DeleteFunc(slices.Clone(s.Namespaces), func(n policy.Namespace) bool {
			return drop("namespace ", n.Name)
		})
		s.Nodes = slices.DeleteFunc(slices.Clone(s.Nodes), func(n policy.Node) bool { return drop("node ", n.Name) })
		s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e policy.Endpoint) bool {
			return drop("endpoint ", e.ID)
		})
		s.Workloads = slices.DeleteFunc(slices.Clone(s.Workloads), func(w policy.Workload) bool {
			return drop("workload ", w.Namespace)
		})
		kept := s.Policies[:0:0]
		for _, p := range s.Policies {
			if !drop("policy ", p.Namespace+p.Name) {
				kept = append(kept, p)
			}
		}
		s.Policies = kept
		if s.Refused != nil && drop("refused", "") {
			s.Refused = nil
		}
	}
	return out
}
