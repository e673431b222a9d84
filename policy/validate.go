package policy

import networkingv1 "k8s.io/api/networking/v1"

// Validate reports what of the policy can't be enforced as it is written.
func Validate(np *networkingv1.NetworkPolicy) []Problem {
	return parse(np).problems
}
