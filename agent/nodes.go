package agent

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/claims"
	"github.com/weir-net/weir/policy/ruleset"
)

type nodeClaims struct {
	stated   []policy.Node // the source's Nodes with all their claims (addresses and podCIDRs)
	accepted []policy.Node
	problems []ruleset.Problem
	local    []claims.UnderlayAddress // addresses of this node and its routers; no other node's podCIDR may contain them
	// err is the error of the last attempt to read local. After an error, local keeps its value.
	err error
}

func (n *nodeClaims) settle(node NodeOptions) {
	n.accepted, n.problems = claims.Settle(n.stated, claims.Terms{
		Self: node.Name, Within: node.ClusterCIDRs, Local: n.local, Before: n.accepted,
	})
}

// equalNode reports whether the Nodes are equal. There may be thousands of Nodes, so it uses no reflection.
func equalNode(a, b policy.Node) bool {
	return a.Name == b.Name && a.Created.Equal(b.Created) && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

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

func (a *agent) takeNodes(d *policy.Delta) {
	n := &a.cluster.nodes
	if !a.cluster.known {
		n.readLocal(a.netlink, a.Node)
	}
	if d.Nodes == nil || slices.EqualFunc(n.stated, *d.Nodes, equalNode) {
		return
	}
	n.stated = *d.Nodes
	a.settleClaims()
}

// settleClaims decides again which Nodes' claims are accepted. A new plan of routes and tunnels is needed
// afterwards.
func (a *agent) settleClaims() {
	a.cluster.nodes.settle(a.Node)
	a.cluster.engine.SetNodes(a.cluster.nodes.accepted)
	a.overlay.current = false
}

func (c *clusterView) podCIDRs(node string) []netip.Prefix {
	i := slices.IndexFunc(c.nodes.accepted, func(n policy.Node) bool { return n.Name == node })
	if node == "" || i < 0 {
		return nil
	}
	return c.nodes.accepted[i].PodCIDRs
}
