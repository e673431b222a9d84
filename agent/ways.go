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

const waysEvery = time.Minute

// ways are the routes and tunnels to pods on other nodes. There may be thousands, so they are read only after a
// change or after waysEvery.
type ways struct {
	current bool
	// moved means that the node's addresses or paths may have changed since plan was made.
	moved     bool
	unchecked bool
	checked   time.Time // when the agent last read the kernel's routes and tunnels
	routes    *overlay.Routes
	plan      overlay.Plan // the wanted routes and tunnels
	kernel    overlay.Plan // the plan that was last applied
	// version numbers the different plans, from 1. applied is the version in the kernel.
	version, applied int
	refused          []ruleset.Problem
	gate             gate
}

func (w *ways) problems() []ruleset.Problem {
	return slices.Concat(w.plan.Problems, w.refused, w.gate.blocked)
}

// heedNews takes note of the kernel's changes. Those of the underlay wait for the next resync, because on some
// nodes they come all the time.
func (a *agent) heedNews(verify netfilter.Verify) {
	w := &a.ways
	w.unchecked = a.upkeep.ways.Swap(false) || w.unchecked
	if verify != netfilter.All {
		return
	}
	if a.upkeep.underlay.Swap(false) || time.Since(w.checked) >= waysEvery || len(w.refused) > 0 {
		w.moved, w.unchecked = true, true
	}
}

func (a *agent) planWays() {
	w := &a.ways
	if a.Node.Name == "" || w.current && !w.moved && a.faults.now[partNodes] == nil {
		return
	}
	if w.routes == nil || w.moved {
		w.routes = overlay.NewRoutes(a.netlink)
	}
	plan := overlay.Compute(a.Node.Name, a.Node.Overlay, a.cluster.nodes.accepted, w.routes)
	if w.version == 0 || !w.plan.Equal(plan) {
		w.version++
	}
	w.plan, w.current, w.moved = plan, true, false
}

// reach returns false if it must be called again. If the kernel refuses one node's route, the others get theirs.
func (a *agent) reach() bool {
	if a.Node.Name == "" {
		return true
	}
	err := a.applyWays()
	if err == nil {
		err = a.writeConflist()
	}
	err = errors.Join(err, a.cluster.nodes.err)
	a.faults.set(partNodes, err)
	return err == nil
}

// applyWays applies the plan, unless nothing can have changed. It counts the parts that another program has
// removed.
func (a *agent) applyWays() error {
	w := &a.ways
	same := w.version == w.applied
	if same && !w.unchecked && a.faults.now[partNodes] == nil {
		return nil
	}
	refusedBefore := len(w.refused) > 0
	applied, err := overlay.New(a.netlink).Apply(w.plan)
	w.refused = applied.Refused
	if err == nil && len(applied.Lacks) > 0 { // the tunnel's device may be new, and may have got addresses by itself
		err = bridge.RemoveAutoconfigured(a.netlink)
	}
	if err != nil {
		return err
	}
	if same && !refusedBefore && len(w.refused) == 0 {
		a.countLacks(applied.Lacks)
	}
	a.reportMoves(w.kernel, w.plan)
	w.kernel, w.applied, w.unchecked, w.checked = w.plan, w.version, false, time.Now()
	return nil
}

func (a *agent) countLacks(lacks []overlay.Lack) {
	var all []repair
	for _, l := range lacks {
		all = append(all, repair{l.Was, l.Command})
	}
	a.countRepairs(bridge.KindOverlay, all)
}

// reportMoves logs nodes with a new address. Of many other nodes, it logs the first ones and the number of the rest.
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
		if len(moved) < excerpt.Named {
			a.Log.Info("a node has another address; packets to its pods go there now",
				"node", p.Node, "before", was, "now", p.Address)
		}
		a.metrics.moves.Inc()
		moved[p.Node] = true // a node with several networks counts once
	}
	if more := len(moved) - excerpt.Named; more > 0 {
		a.Log.Info("more nodes have another address", "count", more)
	}
}
