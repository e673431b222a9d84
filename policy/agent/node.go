package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/kernel"
)

// NodeOptions are for an agent whose source knows the cluster's nodes: it then keeps the way to other nodes' pods, and
// writes the runtime's network configuration.
type NodeOptions struct {
	// Name of this node's Node object; empty: there are no other nodes.
	Name          string
	Encapsulation overlay.Encapsulation
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

// publishAddresses tells other nodes, before kubelet does, of the pods that were let in. One that wasn't may never start,
// and its address may be another's soon.
func (a *agent) publishAddresses(ctx context.Context) {
	source, ok := a.Source.(Publisher)
	if !ok {
		return
	}
	pods := map[endpoint.Pod][]netip.Addr{}
	for _, id := range slices.Sorted(maps.Keys(a.enrolled)) {
		e := a.endpoints[id]
		for _, addr := range e.Addresses {
			pods[e.Pod] = append(pods[e.Pod], addr.Addr)
		}
	}
	if !maps.EqualFunc(pods, a.published, slices.Equal) {
		a.published = pods
		source.Publish(ctx, pods)
	}
}

func (a *agent) computePlan() overlay.Plan {
	if a.Node.Name == "" {
		return overlay.Plan{}
	}
	return overlay.Compute(a.Node.Name, a.Node.Encapsulation, a.objects.Nodes, overlay.New(a.links).SameSubnet)
}

// reach keeps the way to other nodes' pods, and the runtime's configuration. Neither holds up policy: an error is
// reported and tried again.
func (a *agent) reach(verify kernel.Verify) error {
	if a.Node.Name == "" {
		return nil
	}
	ways := overlay.New(a.links)
	changed := a.plan.Local != a.reached.Local || !slices.Equal(a.plan.Gateways, a.reached.Gateways) || !slices.Equal(a.plan.Peers, a.reached.Peers)
	var err error
	if changed || verify == kernel.All || a.faults.now[partNodes] != nil {
		err = ways.Apply(a.plan)
	}
	if err == nil {
		a.reportMoves(a.reached, a.plan)
		if changed { // the tunnel may be new
			err = bridge.RemoveUnasked(a.links)
		}
		a.reached = a.plan
		err = errors.Join(err, a.writeConflist(ways))
	}
	a.faults.set(partNodes, err)
	return err
}

// reportMoves says which nodes have another address than before.
func (a *agent) reportMoves(before, now overlay.Plan) {
	if before.Local.IsValid() && now.Local.IsValid() && before.Local != now.Local {
		a.Log.Info("this node has another address; its tunnels begin there now", "node", a.Node.Name, "before", before.Local, "now", now.Local)
		a.metrics.moves.Inc()
	}
	type end struct {
		node   string
		family conf.Family // of the pods
	}
	addresses, moved := map[end]netip.Addr{}, map[string]bool{}
	for _, p := range before.Peers {
		addresses[end{p.Node, conf.FamilyOf(p.Network.Addr())}] = p.Address
	}
	for _, p := range now.Peers {
		if was, ok := addresses[end{p.Node, conf.FamilyOf(p.Network.Addr())}]; ok && was != p.Address && !moved[p.Node] {
			a.Log.Info("a node has another address; the way to its pods leads there now", "node", p.Node, "before", was, "now", p.Address)
			a.metrics.moves.Inc()
			moved[p.Node] = true // one of its networks is enough
		}
	}
}

// writeConflist writes the configuration that makes the runtime call the plugin, whole and last: a node without it isn't
// ready, so no pod starts where policy isn't enforced yet.
func (a *agent) writeConflist(ways *overlay.Overlay) error {
	if a.Node.Conflist == "" || !a.plan.Local.IsValid() {
		return nil
	}
	mtu, err := ways.MTU(a.plan.Local, a.Node.Encapsulation)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(a.objects.Nodes, func(n policy.Node) bool { return n.Name == a.Node.Name })
	want, err := conf.Conflist(a.objects.Nodes[i].PodCIDRs, mtu, conf.Strict)
	if err != nil {
		return err
	}
	a.mtu = mtu
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
