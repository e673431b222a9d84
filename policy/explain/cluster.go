package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
)

// Cluster is what a source knows of a cluster: the objects that policies are evaluated with, and the Services.
type Cluster struct {
	policy.Objects
	// Endpoints are the attachments on the node of the agent that gave the cluster. They are empty for other sources.
	Endpoints []policy.Endpoint
	// Node is the name of that agent's node; empty if it is unknown, or if no agent gave the cluster.
	Node     string
	Services []policy.Service
	// Gaps say, each in one sentence, which objects could not be read and are missing.
	Gaps []string
	// Own are the addresses of that agent's node.
	Own []netip.Addr `json:"-"`
	// Invented are the networks of addresses that the source gave pods without addresses, so that they can be evaluated.
	Invented []netip.Prefix
}

// NoNode is the NodeName of pods that are on no Node, and that the source gave addresses.
const NoNode = "(none)"

// nodeOf returns the name of the pod's Node; empty if the pod is on none.
func nodeOf(p *policy.Pod) string {
	if p.NodeName == NoNode {
		return ""
	}
	return p.NodeName
}

// podCIDRs returns the Node's podCIDRs, without the networks that the source made up.
func (c Cluster) podCIDRs(n policy.Node) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.PodCIDRs), func(p netip.Prefix) bool { return slices.Contains(c.Invented, p) })
}

// State returns the state that policies are evaluated with.
func (c Cluster) State() policy.State {
	return policy.State{Objects: c.Objects, Endpoints: c.Endpoints, Node: c.Node}
}

// IsInvented reports whether the address is one that the source made up for a pod.
func (c Cluster) IsInvented(a netip.Addr) bool {
	return slices.ContainsFunc(c.Invented, func(p netip.Prefix) bool { return p.Contains(a) })
}
