package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

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

// Lookup is a Source that can be asked for one pod.
type Lookup interface {
	Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error)
}

// Publisher is a Source that can tell others a new pod's addresses.
type Publisher interface {
	Publish(ctx context.Context, p endpoint.Pod, addrs []netip.Addr) error
}

// found is the answer to a question about a pod that the source had not told of.
type found struct{ pod policy.Pod }

// lookup asks for a pod that a plugin waits for and that the source hasn't told of. The answer counts until the next
// state of the source comes.
func (a *agent) lookup(ctx context.Context, p endpoint.Pod) {
	source, ok := a.Source.(Lookup)
	if !ok {
		return
	}
	go func() {
		pod, ok, err := source.Lookup(ctx, p)
		if err != nil {
			a.Log.Warn("a new pod isn't known yet, and the API server can't be asked", "pod", p.String(), "error", err)
		}
		if !ok {
			return
		}
		select {
		case a.founds <- found{pod}:
		case <-ctx.Done():
		}
	}()
}

func (a *agent) takeFound(f found) {
	if a.objects == nil {
		return
	}
	same := func(p policy.Pod) bool { return p.Namespace == f.pod.Namespace && p.Name == f.pod.Name }
	// The source's slices may be in use by nobody else, but they are its own.
	objects := *a.objects
	objects.Pods = append(slices.DeleteFunc(slices.Clone(objects.Pods), same), f.pod)
	a.objects = &objects
}

// publishAddresses tells other nodes of a pod before kubelet does, once for each attachment. That it fails costs only
// time: kubelet reports the address too.
func (a *agent) publishAddresses(ctx context.Context, e endpoint.Endpoint) {
	source, ok := a.Source.(Publisher)
	if !ok || a.published[e.ID()] {
		return
	}
	a.published[e.ID()] = true
	var addrs []netip.Addr
	for _, addr := range e.Addresses {
		addrs = append(addrs, addr.Addr)
	}
	go func() {
		if err := source.Publish(ctx, e.Pod, addrs); err != nil {
			a.Log.Warn("other nodes hear of a pod's address from kubelet only", "pod", e.Pod.String(), "error", err)
		}
	}()
}

// reach keeps the way to other nodes' pods, and the runtime's configuration. Neither holds up policy: an error is
// reported and tried again.
func (a *agent) reach(verify kernel.Verify) error {
	if a.Node.Name == "" {
		return nil
	}
	ways := overlay.New(a.links)
	plan := overlay.Compute(a.Node.Name, a.Node.Encapsulation, a.objects.Nodes, ways.SameSubnet)
	for _, p := range plan.Problems {
		if !slices.Contains(a.plan.Problems, p) {
			a.Log.Error("a node's pods can't be reached", "object", p.Object, "field", p.Field, "problem", p.Message)
		}
	}
	changed := plan.Local != a.plan.Local || plan.Gateway != a.plan.Gateway || !slices.Equal(plan.Peers, a.plan.Peers)
	if changed || verify == kernel.All || a.reachErr != nil {
		if err := ways.Apply(plan); err != nil {
			return err
		}
	}
	a.plan = plan
	return a.writeConflist(ways)
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
	var networks []netip.Prefix
	for _, p := range a.objects.Nodes[i].PodCIDRs {
		if p.Addr().Is4() {
			networks = append(networks, p)
		}
	}
	want, err := conf.Conflist(networks, mtu, conf.Strict)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(a.Node.Conflist); err == nil && bytes.Equal(have, want) {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(a.Node.Conflist), "."+filepath.Base(a.Node.Conflist))
	if err := os.WriteFile(tmp, want, 0o600); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if err := os.Rename(tmp, a.Node.Conflist); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	a.Log.Info("the runtime may start pods: its network configuration is written", "path", a.Node.Conflist)
	return nil
}
