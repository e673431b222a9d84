package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
)

// Cluster is what a source knows of a cluster, with its Services.
type Cluster struct {
	policy.Objects
	// Endpoints are the attachments on the node of the agent that gave the cluster. Other sources have none.
	Endpoints []policy.Endpoint
	// Node is that agent's node; empty if it is unknown, or if no agent gave the cluster.
	Node     string
	Services []policy.Service
	// Gaps say which objects could not be read, a sentence for each.
	Gaps []string
	// Own are the addresses of that agent's node.
	Own []netip.Addr `json:"-"`
	// Invented are networks of addresses that the source made up for pods without addresses.
	Invented []netip.Prefix
}

// NoNode is the NodeName of pods on no Node that the source gave addresses.
const NoNode = "(none)"

func nodeOf(p *policy.Pod) string {
	if p.NodeName == NoNode {
		return ""
	}
	return p.NodeName
}

// podCIDRs leaves out the networks that the source made up.
func (c Cluster) podCIDRs(n policy.Node) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.PodCIDRs), func(p netip.Prefix) bool { return slices.Contains(c.Invented, p) })
}

// State returns what the compiler and the evaluator need of the cluster.
func (c Cluster) State() policy.State {
	return policy.State{Objects: c.Objects, Endpoints: c.Endpoints, Node: c.Node}
}

// IsInvented reports whether the source made up the address for a pod.
func (c Cluster) IsInvented(a netip.Addr) bool {
	return slices.ContainsFunc(c.Invented, func(p netip.Prefix) bool { return p.Contains(a) })
}
