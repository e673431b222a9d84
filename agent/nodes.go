package agent

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// nodeClaims has the claims of the Node objects, and the claims that the agent accepts. Invariant: accepted and
// problems are the results of policy.Settle for stated and local.
type nodeClaims struct {
	latest   *policy.Objects // the source's last objects, with all Nodes
	stated   []policy.Node
	accepted []policy.Node
	problems []ruleset.Problem
	local    []policy.UnderlayAddress // addresses that this node itself needs
	// err is the error of the last attempt to read local. After an error, local keeps its value.
	err error
}

// accept returns the objects with only the accepted Nodes, and whether it has evaluated the claims again.
func (n *nodeClaims) accept(o *policy.Objects, node NodeOptions) (accepted *policy.Objects, changed bool) {
	n.latest = o
	if !slices.EqualFunc(n.stated, o.Nodes, equalNode) {
		changed = true
		n.stated = o.Nodes
		n.accepted, n.problems = policy.Settle(o.Nodes, policy.Terms{
			Self: node.Name, Within: node.ClusterCIDRs, Local: n.local, Before: n.accepted,
		})
	}
	with := *o
	with.Nodes, with.Problems = n.accepted, slices.Concat(o.Problems, n.problems)
	return &with, changed
}

// equalNode reports whether both Nodes make the same claims. It is called for thousands of Nodes.
func equalNode(a, b policy.Node) bool {
	return a.Name == b.Name && a.Created.Equal(b.Created) && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

// readLocal reads the addresses that this node itself needs. It returns true if they have changed.
func (n *nodeClaims) readLocal(links netlinksafe.Handle, node NodeOptions) (changed bool) {
	if node.Name == "" {
		return false
	}
	local, err := overlay.UnderlayAddresses(links)
	if n.err = err; err != nil || slices.Equal(n.local, local) {
		return false
	}
	n.local = local
	return true
}

// acceptNodes makes the objects, with only the accepted Nodes, the agent's view of the cluster.
func (a *agent) acceptNodes(o *policy.Objects) {
	accepted, changed := a.cluster.nodes.accept(o, a.Node)
	if changed {
		a.ways.current = false
	}
	a.cluster.update(accepted, a.records.endpoints)
}

// podCIDRs returns the address ranges of this node's Node; nil if the Node isn't known or has no range.
func (c *clusterView) podCIDRs(node string) []netip.Prefix {
	if node == "" || c.objects == nil {
		return nil
	}
	i := slices.IndexFunc(c.objects.Nodes, func(n policy.Node) bool { return n.Name == node })
	if i < 0 {
		return nil
	}
	return c.objects.Nodes[i].PodCIDRs
}
