package policy

import (
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// Validate reports what of the policy can't be enforced as it is written.
func Validate(np *networkingv1.NetworkPolicy) []ruleset.Problem {
	return parse(np).problems
}

// Invalid reports what an API server would refuse of the policy. What is only too large isn't among it.
func Invalid(np *networkingv1.NetworkPolicy) []ruleset.Problem {
	return slices.DeleteFunc(Validate(np), func(p ruleset.Problem) bool { return strings.HasPrefix(p.Message, tooLarge) })
}
