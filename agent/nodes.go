package agent

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// nodeClaims are what the Node objects state, and what of it the agent accepts. Invariant: accepted and problems are
// policy.Settle of stated and local.
type nodeClaims struct {
	latest   *policy.Objects // as the source gave them last, with all Nodes
	stated   []policy.Node
	accepted []policy.Node
	problems []ruleset.Problem
	local    []policy.UnderlayAddress // addresses that this node needs itself
	// err says why local could not be read; the value from before is kept.
	err error
}

// accept returns the objects with only the Nodes that are accepted, and whether these were evaluated anew.
func (n *nodeClaims) accept(o *policy.Objects, node NodeOptions) (accepted *policy.Objects, changed bool) {
	n.latest = o
	if !slices.EqualFunc(n.stated, o.Nodes, func(a, b policy.Node) bool { return reflect.DeepEqual(a, b) }) {
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

// readLocal reads which addresses this node needs itself. It says whether they are others than before.
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

// acceptNodes makes the objects, without the Nodes that are not accepted, the agent's view of the cluster.
func (a *agent) acceptNodes(o *policy.Objects) {
	accepted, changed := a.cluster.nodes.accept(o, a.Node)
	if changed {
		a.ways.current = false
	}
	a.cluster.update(accepted, a.records.endpoints)
}

// podCIDRs of this node's Node; none if it isn't known, or has none.
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
