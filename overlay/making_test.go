package overlay

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// TestMakingTheTunnelIsNoRepair: while Apply makes the tunnel, the agent's repair of node settings finds no difference.
// It would report a difference as another program's change.
func TestMakingTheTunnelIsNoRepair(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o := zones(t)["n2"]
	const n2 = "/run/netns/n2"
	plan := planned("n2", Always, []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24", "fd00:96:1::/64"),
		node("n2", "172.20.2.10", "100.96.2.0/24", "fd00:96:2::/64"),
	}, o)
	ctx, stop := context.WithCancel(t.Context())
	repaired := make(chan error, 1)
	go func() { repaired <- ns.WithNetNSPath(n2, func(ns.NetNS) error { return repair(ctx) }) }()
	for range 200 {
		nodetest.In(t, n2, func() error {
			if _, err := o.Apply(plan); err != nil {
				return err
			}
			link, err := o.h.LinkByName(conf.Tunnel)
			if err != nil {
				return err
			}
			return o.h.LinkDel(link)
		})
	}
	stop()
	if err := <-repaired; err != nil {
		t.Error(err)
	}
}

// repair repairs the settings of a node without pods until ctx ends. It returns the first difference.
func repair(ctx context.Context) error {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	memory, err := bridge.NodeMemory()
	if err != nil {
		return err
	}
	properties := bridge.Properties(bridge.Knowledge{Memory: memory})
	bridge.Repair(h, properties) // the namespace is new
	for ctx.Err() == nil {
		unlock, err := endpoint.Lock()
		if err != nil {
			return err
		}
		differences := bridge.Repair(h, properties)
		unlock()
		for _, d := range differences {
			return errors.Join(fmt.Errorf("repaired: %w (%s)", d.Was, d.Property.Command()), d.Failed)
		}
	}
	return nil
}
