// Package objects converts Kubernetes' types to the types of package policy.
//
// Invariants:
//   - All sources use this package, so a pod has the same meaning in a manifest and in the API server.
//   - If package policy needs a field of a pod or a Node, and the field can't be read, the object gets a problem. Its
//     other fields are used.
//   - IsPod compares a converted pod with a Kubernetes pod. It returns true if and only if Pod, called with the
//     Kubernetes pod, would return an equal pod without problems.
//   - The package reads no file, and asks no API server.
package objects

import (
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Namespace converts a namespace. It adds the label kubernetes.io/metadata.name, as the API server does.
func Namespace(ns *corev1.Namespace) policy.Namespace {
	labels := maps.Clone(ns.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = ns.Name
	return policy.Namespace{Name: ns.Name, Labels: labels}
}

type reader struct {
	object   string
	problems []ruleset.Problem
}

func (r *reader) report(field, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	r.problems = append(r.problems, ruleset.Problem{Object: r.object, Field: field, Message: message})
}

// Node converts a node, and returns the problems of fields that can't be read. The returned addresses and networks are
// only claims: what the Node states as its own. claims.Settle decides which claims are valid.
func Node(node *corev1.Node) (policy.Node, []ruleset.Problem) {
	n := policy.Node{Name: node.Name, Created: node.CreationTimestamp.UTC()}
	r := reader{object: "Node " + node.Name}
	for i, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || addr.Zone() != "" {
			r.report(fmt.Sprintf("status.addresses[%d].address", i), "%q is no IP address", a.Address)
			continue
		}
		n.Addresses = append(n.Addresses, addr.Unmap())
	}
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 && node.Spec.PodCIDR != "" {
		cidrs = []string{node.Spec.PodCIDR}
	}
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil || p.Addr().Is4In6() {
			r.report(fmt.Sprintf("spec.podCIDRs[%d]", i), "%q is no CIDR of pods", c)
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	return n, r.problems
}
