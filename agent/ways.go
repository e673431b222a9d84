package agent

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy/ruleset"
)

// ways are the routes and tunnels to pods on other nodes. If this node has no Node, there are no such routes and
// tunnels.
type ways struct {
	// current is true if plan was computed from the newest accepted Nodes.
	current bool
	routes  *overlay.Routes
	plan    overlay.Plan // the wanted routes and tunnels
	kernel  overlay.Plan // the plan that was last applied
	refused []ruleset.Problem
	gate    gate
}

// problems returns the problems of Nodes whose pods can't be reached, and the problem of the host's firewall.
func (w *ways) problems() []ruleset.Problem {
	return slices.Concat(w.plan.Problems, w.refused, w.gate.blocked)
}

// planWays plans the routes and tunnels again if Nodes or the node's routes may have changed.
func (a *agent) planWays(verify netfilter.Verify) {
	w := &a.ways
	if a.Node.Name == "" || w.current && verify != netfilter.All && a.faults.now[partNodes] == nil {
		return
	}
	if w.routes == nil || verify == netfilter.All {
		w.routes = overlay.NewRoutes(a.netlink)
	}
	w.plan, w.current = overlay.Compute(a.Node.Name, a.Node.Overlay, a.cluster.objects.Nodes, w.routes), true
}

// reach sets up the routes and tunnels to other nodes' pods, and writes the runtime's configuration. It returns false
// if it must be called again. No policy and no enrolment waits for it. If the kernel refuses the route to one node,
// reach still sets up the routes to the others.
func (a *agent) reach(verify netfilter.Verify) bool {
	if a.Node.Name == "" {
		return true
	}
	w := &a.ways
	same := w.plan.Equal(w.kernel)
	var lacks []overlay.Lack
	var err error
	if changed := a.upkeep.ways.Swap(false); same && (changed || verify == netfilter.All) {
		lacks, err = w.plan.Lacks(bridge.Observe(a.netlink))
	}
	if verify == netfilter.All || a.faults.now[partNodes] != nil || err != nil || len(w.refused)+len(lacks) > 0 || !same {
		var failed error
		w.refused, failed = overlay.New(a.netlink).Apply(w.plan)
		err = errors.Join(err, failed)
	}
	if err == nil && (!same || len(lacks) > 0) { // the tunnel's device may be new, and may have got addresses by itself
		err = bridge.RemoveAutoconfigured(a.netlink)
	}
	if err == nil {
		if len(w.refused) == 0 {
			a.countLacks(lacks)
		}
		a.reportMoves(w.kernel, w.plan)
		w.kernel = w.plan
		err = a.writeConflist()
	}
	err = errors.Join(err, a.cluster.nodes.err)
	a.faults.set(partNodes, err)
	return err == nil && len(w.refused) == 0
}

// countLacks counts, as repairs, the routes and other parts of the tunnel that another program had removed.
func (a *agent) countLacks(lacks []overlay.Lack) {
	var all []repair
	for _, l := range lacks {
		all = append(all, repair{l.Was, l.Command})
	}
	a.countRepairs(bridge.KindOverlay, all)
}

// reportMoves logs and counts nodes with a changed address.
func (a *agent) reportMoves(before, now overlay.Plan) {
	if before.NodeAddress.IsValid() && now.NodeAddress.IsValid() && before.NodeAddress != now.NodeAddress {
		a.Log.Info("this node has another address; its tunnels begin there now",
			"node", a.Node.Name, "before", before.NodeAddress, "now", now.NodeAddress)
		a.metrics.moves.Inc()
	}
	type end struct {
		node   string
		family conf.Family // of the pods
	}
	addresses, moved := map[end]netip.Addr{}, map[string]bool{}
	for _, p := range before.Remotes {
		addresses[end{p.Node, conf.FamilyOf(p.Network.Addr())}] = p.Address
	}
	for _, p := range now.Remotes {
		was, ok := addresses[end{p.Node, conf.FamilyOf(p.Network.Addr())}]
		if !ok || was == p.Address || moved[p.Node] {
			continue
		}
		a.Log.Info("a node has another address; the way to its pods leads there now",
			"node", p.Node, "before", was, "now", p.Address)
		a.metrics.moves.Inc()
		moved[p.Node] = true // a node with several networks counts once
	}
}
