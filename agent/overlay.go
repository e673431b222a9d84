package agent

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy/ruleset"
)

// overlayEvery is how often the routes and tunnels to other nodes are read even if the kernel has announced no change.
// The kernel announces every change that they depend on, so this is only a precaution.
const overlayEvery = 10 * time.Minute

// overlayView has the routes and tunnels to pods on other nodes. There may be thousands, so they are read only after a
// change or an error, after overlayEvery, and at each resync while the kernel refuses one of them.
type overlayView struct {
	current bool
	// moved means that the node's addresses or paths may have changed since plan was made.
	moved     bool
	unchecked bool
	checked   time.Time // when the agent last read the kernel's routes and tunnels
	routes    *overlay.Routes
	plan      overlay.Plan // the wanted routes and tunnels
	kernel    overlay.Plan // the plan that was last applied
	// version is the number of the present plan: each different plan gets the next number, from 1 on. applied is the
	// number of the plan in the kernel.
	version, applied int
	refused          []ruleset.Problem
	gate             gate
}

func (o *overlayView) problems() []ruleset.Problem {
	return slices.Concat(o.plan.Problems, o.refused, o.gate.blocked)
}

// heedNews decides what the loop reads again after the changes that upkeep has heard of. Changes of the underlay (the
// paths to other nodes) wait for the next resync, because on some nodes they come all the time.
func (a *agent) heedNews(verify netfilter.Verify) {
	o := &a.overlay
	o.unchecked = a.upkeep.overlay.Swap(false) || o.unchecked
	if verify != netfilter.All {
		return
	}
	if a.upkeep.underlay.Swap(false) || time.Since(o.checked) >= overlayEvery || len(o.refused) > 0 {
		o.moved, o.unchecked = true, true
	}
}

func (a *agent) planOverlay() {
	o := &a.overlay
	if a.Node.Name == "" || o.current && !o.moved && a.faults.now[partNodes] == nil {
		return
	}
	if o.routes == nil || o.moved {
		o.routes = overlay.NewRoutes(a.netlink)
	}
	plan := overlay.Compute(a.Node.Name, a.Node.Overlay, a.cluster.nodes.accepted, o.routes)
	if o.version == 0 || !o.plan.Equal(plan) {
		o.version++
	}
	o.plan, o.current, o.moved = plan, true, false
}

// reach applies the plan of routes and tunnels to other nodes, and then writes the runtime's network configuration. It
// returns false if it must be called again. If the kernel refuses the route to one node, the routes to other nodes are
// still set.
func (a *agent) reach() bool {
	if a.Node.Name == "" {
		return true
	}
	err := a.applyOverlay()
	if err == nil {
		err = a.writeConflist()
	}
	err = errors.Join(err, a.cluster.nodes.err)
	a.faults.set(partNodes, err)
	return err == nil
}

// applyOverlay applies the plan if the plan or the kernel may have changed. It counts the parts that another program
// has removed.
func (a *agent) applyOverlay() error {
	o := &a.overlay
	same := o.version == o.applied
	if same && !o.unchecked && a.faults.now[partNodes] == nil {
		return nil
	}
	refusedBefore := o.refused
	applied, err := overlay.New(a.netlink).Apply(o.plan)
	o.refused = applied.Refused
	if err != nil {
		return err
	}
	if same {
		a.countLacks(applied.Lacks, slices.Concat(refusedBefore, o.refused))
	}
	a.reportMoves(o.kernel, o.plan)
	o.kernel, o.applied, o.unchecked, o.checked = o.plan, o.version, false, time.Now()
	return nil
}

// countLacks counts missing routes and tunnels as repairs, except those to nodes in refused: these may be missing
// because the kernel refuses or refused them.
func (a *agent) countLacks(lacks []overlay.Lack, refused []ruleset.Problem) {
	var all []repair
	for _, l := range lacks {
		if !slices.ContainsFunc(refused, func(p ruleset.Problem) bool { return p.Object == "Node "+l.Node }) {
			all = append(all, repair{l.Was, l.Command})
		}
	}
	a.countRepairs(bridge.KindOverlay, all)
}

// reportMoves logs nodes with a new address. If many other nodes have a new address, it logs a few of them and the
// number of the rest.
func (a *agent) reportMoves(before, now overlay.Plan) {
	if before.NodeAddress.IsValid() && now.NodeAddress.IsValid() && before.NodeAddress != now.NodeAddress {
		a.Log.Info("this node has another address; its tunnels begin there now",
			"node", a.Node.Name, "before", before.NodeAddress, "now", now.NodeAddress)
		a.metrics.nodeMoves.Inc()
	}
	type end struct {
		node   string
		family conf.Family // the family of the node's pods
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
		if len(moved) < excerpt.Named {
			a.Log.Info("a node has another address; packets to its pods go there now",
				"node", p.Node, "before", was, "now", p.Address)
		}
		a.metrics.nodeMoves.Inc()
		moved[p.Node] = true // a node with several networks counts once
	}
	if more := len(moved) - excerpt.Named; more > 0 {
		a.Log.Info("more nodes have another address", "count", more)
	}
}
