package policy_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestParsedSavesNothingButTime: the result for a state doesn't depend on the objects that were parsed before. Policies
// that haven't changed aren't parsed again.
func TestParsedSavesNothingButTime(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 4))
		s := policytest.State(r)
		var parsed *policy.Parsed
		for range 5 {
			want := text(t, policy.Compile(s))
			parsed = policy.Parse(s.Policies, parsed)
			if policy.Parse(s.Policies, parsed) != parsed {
				t.Error("the same policies are read again")
			}
			with := s
			with.Parsed = parsed
			if diff := cmp.Diff(want, text(t, policy.Compile(with))); diff != "" {
				t.Fatalf("seed %d: with policies that were read before: %s", seed, diff)
			}
			s = policytest.Change(r, s)
			with = s
			with.Parsed = parsed // the parsed policies of the state before
			if diff := cmp.Diff(text(t, policy.Compile(s)), text(t, policy.Compile(with))); diff != "" {
				t.Fatalf("seed %d: with another state's policies: %s", seed, diff)
			}
		}
	}
}

func text(t *testing.T, r ruleset.Ruleset) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestManyPodsWithOneAddress: each problem names only a few of the other pods, so the problems' text doesn't grow with
// the square of the number of pods.
func TestManyPodsWithOneAddress(t *testing.T) {
	var s policy.State
	for i := range 1000 {
		s.Pods = append(s.Pods,
			policy.Pod{Namespace: "ns", Name: fmt.Sprintf("p%03d", i), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	}
	problems := policy.Compile(s).Problems
	if len(problems) != 1000 {
		t.Fatalf("%d problems", len(problems))
	}
	if got, want := problems[1].Message,
		"10.0.0.1 is also claimed by ns/p000, ns/p002, ns/p003 and 996 more; its packets pass only where all of "+
			"them are allowed"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
