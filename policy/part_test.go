package policy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weir-net/weir/policy/ruleset"
)

// TestProblemList: the problems of a policy that may select a pod have the policy's own name. No problem comes twice,
// and a policy has at most maxProblems problems.
func TestProblemList(t *testing.T) {
	of := &parsedPolicy{name: "shop/a" + maybeSuffix}
	ingress := ruleset.ProblemOfPolicy("shop/a", "spec.ingress", "x")
	egress := ruleset.ProblemOfPolicy("shop/a", "spec.egress", "x")
	var all problemList
	all.report(of, "ingress", "x")
	all.report(of, "ingress", "x")
	all.add(of, []ruleset.Problem{ingress, egress, egress})
	if want := []ruleset.Problem{ingress, egress}; !slices.Equal(all.all, want) {
		t.Errorf("got %q, want %q", all.all, want)
	}
	for i := range maxProblems {
		all.add(of, []ruleset.Problem{ruleset.ProblemOfPolicy("shop/a", "spec.ingress", fmt.Sprint(i))})
	}
	if all.report(of, "egress", "y"); len(all.all) != maxProblems {
		t.Errorf("the policy has %d problems", len(all.all))
	}
}
