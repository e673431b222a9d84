package policy

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// Validate returns a problem for each part of the policy that can't be enforced as it is written.
func Validate(np *networkingv1.NetworkPolicy) []ruleset.Problem {
	return parse(np).problems
}

// Invalid returns the problems for which an API server would refuse the policy.
func Invalid(np *networkingv1.NetworkPolicy) []ruleset.Problem { return parse(np).invalid }
