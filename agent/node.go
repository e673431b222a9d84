package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// NodeOptions are for an agent whose source knows the cluster's nodes: it then keeps the way to other nodes' pods, and
// writes the runtime's network configuration.
type NodeOptions struct {
	// Name of this node's Node object; empty: there are no other nodes.
	Name    string
	Overlay overlay.Options
	// ClusterCIDRs, if there are any, hold all networks of pods: a Node's that doesn't lie within one doesn't count.
	ClusterCIDRs []netip.Prefix
	// Conflist is the path that the network configuration is written to, once the first state is in the kernel; empty:
	// somebody else writes it.
	Conflist string
}

// Publisher is a Source that can tell others of pods' addresses.
type Publisher interface {
	// Publish says which addresses pods of this node have, until it is called again. It doesn't wait.
	Publish(ctx context.Context, pods map[endpoint.Pod][]netip.Addr)
	// AwaitPublished returns when others can know of a pod that Publish was, or is about to be, called with; or ctx ends.
	AwaitPublished(ctx context.Context, pod endpoint.Pod)
}

// podInterface is the interface whose addresses kubelet reports as the pod's (defaultIfName of containerd's CRI
// plugin).
const podInterface = "eth0"

// publishAddresses tells other nodes, before kubelet does, of the pods that were let in. One that wasn't may never start,
// and its address may be another's soon. Further interfaces of a pod, as Multus makes them, are no part of its status.
func (a *agent) publishAddresses(ctx context.Context) {
	source, ok := a.Source.(Publisher)
	if !ok {
		return
	}
	pods := map[endpoint.Pod][]netip.Addr{}
	for _, id := range slices.Sorted(maps.Keys(a.enrolled)) {
		e := a.endpoints[id]
		if e.IfName != podInterface {
			continue
		}
		for _, addr := range e.Addresses {
			pods[e.Pod] = append(pods[e.Pod], addr.Addr)
		}
	}
	if !maps.EqualFunc(pods, a.published, slices.Equal) {
		a.published = pods
		source.Publish(ctx, pods)
	}
}

// settled are the Nodes that the source has told of, and what counts of them.
type settled struct {
	source      *policy.Objects // as the source told of it last
	told, nodes []policy.Node
	problems    []ruleset.Problem
	local       []policy.Local
	unknown     error // of local: what was known before goes on
}

// settle has the objects' Nodes be what counts of them.
func (a *agent) settle(o *policy.Objects) *policy.Objects {
	if a.nodes.source == nil {
		a.lookLocal()
	}
	a.nodes.source = o
	if !slices.EqualFunc(a.nodes.told, o.Nodes, func(a, b policy.Node) bool { return reflect.DeepEqual(a, b) }) {
		a.nodes.told = o.Nodes
		a.nodes.nodes, a.nodes.problems = policy.Settle(o.Nodes, policy.Terms{
			Self: a.Node.Name, Within: a.Node.ClusterCIDRs, Local: a.nodes.local, Before: a.nodes.nodes,
		})
		a.ways.planned = false
	}
	counting := *o
	counting.Nodes, counting.Problems = a.nodes.nodes, slices.Concat(o.Problems, a.nodes.problems)
	return &counting
}

// lookLocal reads which addresses this node needs itself. It says whether they are others than before.
func (a *agent) lookLocal() bool {
	if a.Node.Name == "" {
		return false
	}
	local, err := overlay.UnderlayAddresses(a.links)
	if a.nodes.unknown = err; err != nil || slices.Equal(a.nodes.local, local) {
		return false
	}
	a.nodes.local = local
	return true
}

// settleAnew settles what counts of the Nodes again if the addresses that this node needs itself have changed.
func (a *agent) settleAnew(verify iptables.Verify) {
	if verify != iptables.All || a.nodes.source == nil || !a.lookLocal() {
		return
	}
	a.nodes.told = nil
	a.told = a.settle(a.nodes.source)
	a.parse()
	a.join()
}

// ways lead to pods on other nodes.
type ways struct {
	planned bool
	routes  *overlay.Routes
	plan    overlay.Plan // as it should be
	reached overlay.Plan // as it was last brought into the kernel
	refused []ruleset.Problem
	gate    gate
}

// gate is what of the gate was last brought into the kernel.
type gate struct {
	stands  bool
	plan    overlay.Plan
	links   []string
	traffic overlay.Traffic
	blocked []ruleset.Problem // by a firewall of the host
}

func (w ways) problems() []ruleset.Problem {
	return slices.Concat(w.plan.Problems, w.refused, w.gate.blocked)
}

// planWays plans the ways anew where Nodes have changed, and the node's routes may have.
func (a *agent) planWays(verify iptables.Verify) {
	if a.Node.Name == "" || a.ways.planned && verify != iptables.All && a.faults.now[partNodes] == nil {
		return
	}
	if a.ways.routes == nil || verify == iptables.All {
		a.ways.routes = overlay.NewRoutes(a.links)
	}
	a.ways.plan, a.ways.planned = overlay.Compute(a.Node.Name, a.Node.Overlay, a.objects.Nodes, a.ways.routes), true
}

// foreignLinks are those that other plugins made for pods.
func (a *agent) foreignLinks() []string {
	var names []string
	for _, e := range a.endpoints {
		if !e.Chained {
			continue
		}
		for _, name := range []string{e.HostIf, e.BridgeIf} {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// keepGate keeps what says which tunnel packets are believed. It comes before the ways, and without it no pod is let
// in.
func (a *agent) keepGate(verify iptables.Verify) error {
	if a.Node.Name == "" {
		return nil
	}
	g, links := &a.ways.gate, a.foreignLinks()
	if g.stands && verify != iptables.All && g.plan.Equal(a.ways.plan) && slices.Equal(g.links, links) {
		return nil
	}
	renewed, traffic, err := overlay.NewGate(a.ways.plan, links).Apply()
	if err != nil {
		g.stands = false
		return err
	}
	if renewed && g.stands && g.plan.Options == a.ways.plan.Options && g.plan.NodeAddress == a.ways.plan.NodeAddress {
		a.stats.Repairs++
		a.Log.Warn("somebody had changed the nftables table inet weir-tunnel; it is as it should be again")
	}
	if !renewed {
		g.blocked = blocked(a.Node, g.traffic, traffic, g.blocked)
	}
	if renewed {
		traffic = overlay.Traffic{}
	}
	g.stands, g.plan, g.links, g.traffic = true, a.ways.plan, links, traffic
	return nil
}

// keepGateClosed is keepGate while it isn't known which nodes there are.
func (a *agent) keepGateClosed() error {
	if a.Node.Name == "" {
		return nil
	}
	return overlay.NewGate(overlay.Plan{Options: a.Node.Overlay}, a.foreignLinks()).EnsureExists()
}

// fewPackets are too few to tell a firewall from bad luck.
const fewPackets = 3

// blocked says whether a firewall of the host drops what the gate has let through since. A rule that accepts tunnel
// packets by connection state is the usual reason: they are untracked, and neither NEW nor ESTABLISHED.
func blocked(o NodeOptions, before, now overlay.Traffic, was []ruleset.Problem) []ruleset.Problem {
	if now.Accepted < before.Accepted || now.Delivered < before.Delivered { // the table was made anew, and counts from there
		before = overlay.Traffic{}
	}
	switch {
	case now.Delivered > before.Delivered:
		return nil
	case now.Accepted-before.Accepted < fewPackets:
		return was
	}
	return []ruleset.Problem{{Object: "Node " + o.Name, Field: "host firewall", Message: fmt.Sprintf(
		"tunnel packets from other nodes come in, and a firewall of this host drops all of them: it must accept UDP port %d from nodes "+
			"without asking for a connection state, as tunnels are not tracked", o.Overlay.Port)}}
}

// reach keeps the way to other nodes' pods, and the runtime's configuration. It is false if some of it must be tried
// again. None of it holds up policy, and what the kernel refuses of one node doesn't hold up the others.
func (a *agent) reach(verify iptables.Verify) bool {
	if a.Node.Name == "" {
		return true
	}
	w := &a.ways
	same := w.plan.Equal(w.reached)
	var lacks []overlay.Lack
	var err error
	if noticed := a.upkeep.ways.Swap(false); same && (noticed || verify == iptables.All) {
		lacks, err = w.plan.Lacks(bridge.Observe(a.links))
	}
	if verify == iptables.All || a.faults.now[partNodes] != nil || err != nil || len(w.refused)+len(lacks) > 0 || !same {
		var failed error
		w.refused, failed = overlay.New(a.links).Apply(w.plan)
		err = errors.Join(err, failed)
	}
	if err == nil && (!same || len(lacks) > 0) { // the tunnel may be new
		err = bridge.RemoveAutoconfigured(a.links)
	}
	if err == nil {
		if len(w.refused) == 0 {
			a.noteLacks(lacks)
		}
		a.reportMoves(w.reached, w.plan)
		w.reached = w.plan
		err = a.writeConflist()
	}
	err = errors.Join(err, a.nodes.unknown)
	a.faults.set(partNodes, err)
	return err == nil && len(w.refused) == 0
}

// noteLacks counts what of the ways somebody had taken away.
func (a *agent) noteLacks(lacks []overlay.Lack) {
	var all []repair
	for _, l := range lacks {
		all = append(all, repair{l.Was, l.Command})
	}
	a.noteRepair(bridge.KindOverlay, all)
}

// reportMoves says which nodes have another address than before.
func (a *agent) reportMoves(before, now overlay.Plan) {
	if before.NodeAddress.IsValid() && now.NodeAddress.IsValid() && before.NodeAddress != now.NodeAddress {
		a.Log.Info("this node has another address; its tunnels begin there now", "node", a.Node.Name, "before", before.NodeAddress, "now", now.NodeAddress)
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
		if was, ok := addresses[end{p.Node, conf.FamilyOf(p.Network.Addr())}]; ok && was != p.Address && !moved[p.Node] {
			a.Log.Info("a node has another address; the way to its pods leads there now", "node", p.Node, "before", was, "now", p.Address)
			a.metrics.moves.Inc()
			moved[p.Node] = true // one of its networks is enough
		}
	}
}

// writeConflist writes the configuration that makes the runtime call the plugin, whole and last: a node without it isn't
// ready, so no pod starts where policy isn't enforced yet.
func (a *agent) writeConflist() error {
	plan := a.ways.plan
	if a.Node.Conflist == "" || !plan.NodeAddress.IsValid() || plan.MTU == 0 {
		return nil
	}
	want, err := conf.Conflist(plan.Own, plan.MTU, conf.Strict)
	if err != nil {
		return err
	}
	a.mtu = plan.MTU
	if have, err := os.ReadFile(a.Node.Conflist); err == nil && bytes.Equal(have, want) {
		return nil
	}
	tmp := a.Node.Conflist + ".tmp" // which no runtime takes for a configuration
	if err := os.WriteFile(tmp, want, 0o600); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if err := os.Rename(tmp, a.Node.Conflist); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	a.Log.Info("the runtime may start pods: its network configuration is written", "path", a.Node.Conflist)
	return nil
}
