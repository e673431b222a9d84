package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
)

type Cluster struct {
	policy.Objects
	Endpoints []policy.Endpoint
	// Node is the name of the agent's node. It is empty if no agent has returned the cluster, or if the agent doesn't
	// know the name.
	Node     string
	Services []policy.Service
	// Gaps has a sentence for each kind of objects that could not be read.
	Gaps []string
	// Own has the addresses of the agent's node.
	Own []netip.Addr `json:"-"`
	// Invented has networks from which the source made up addresses for pods without addresses.
	Invented []netip.Prefix
}

// NoNode is the NodeName of a pod that is on no Node, and whose address is made up.
const NoNode = "(none)"

func nodeOf(p *policy.Pod) string {
	if p.NodeName == NoNode {
		return ""
	}
	return p.NodeName
}

// podCIDRs returns the Node's podCIDRs, without networks of made-up addresses.
func (c Cluster) podCIDRs(n policy.Node) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.PodCIDRs), func(p netip.Prefix) bool { return slices.Contains(c.Invented, p) })
}

// isComplete reports whether all pods are known, with their addresses. An agent's Cluster has only the pods that the
// query concerns.
func (c Cluster) isComplete() bool { return c.Node == "" && len(c.Gaps)+len(c.Invented) == 0 }

// isOurs reports whether the address is in a pod network of the agent's node.
func (c Cluster) isOurs(a netip.Addr) bool {
	return slices.ContainsFunc(c.Endpoints, func(e policy.Endpoint) bool {
		return slices.ContainsFunc(e.Addresses, func(own policy.Address) bool { return own.Subnet.Contains(a) })
	})
}

// State returns the part of the cluster that the compiler and the evaluator need.
func (c Cluster) State() policy.State {
	return policy.State{Objects: c.Objects, Endpoints: c.Endpoints, Node: c.Node}
}

// IsInvented reports whether the source made up the address for a pod.
func (c Cluster) IsInvented(a netip.Addr) bool {
	return slices.ContainsFunc(c.Invented, func(p netip.Prefix) bool { return p.Contains(a) })
}
