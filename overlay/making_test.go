package overlay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

const n2 = "/run/netns/n2"

// toN1 returns the overlay of the node n2, and a plan with a tunnel to the node n1.
func toN1(t *testing.T) (*Overlay, Plan) {
	t.Helper()
	o := zones(t)["n2"]
	return o, planned("n2", Always, []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24"),
	}, o)
}

// TestMakingTheTunnelIsNoRepair: while Apply makes the tunnel, the agent's repair of node settings finds no
// difference. The agent would report a difference as another program's change.
func TestMakingTheTunnelIsNoRepair(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o, plan := toN1(t)
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

// TestApplyWithoutTheLock: if another process has the node's lock, Apply makes no tunnel, and soon returns an error,
// because the agent's loop must go on.
func TestApplyWithoutTheLock(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o, plan := toN1(t)
	unlock, err := endpoint.Lock()
	if err != nil {
		t.Fatal(err)
	}
	failed := func() error { // unlike nodetest.In, it doesn't end the test
		return ns.WithNetNSPath(n2, func(ns.NetNS) error {
			_, err := o.Apply(plan)
			return err
		})
	}
	if err := failed(); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("another process has the lock: %v", err)
	}
	unlock()
	if err := failed(); err != nil {
		t.Error(err)
	}
}

// TestTheTunnelGetsIPv6: if the tunnel's MTU was too small for IPv6, and becomes large enough, the kernel switches
// IPv6 on, but configures no addresses by itself.
func TestTheTunnelGetsIPv6(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o, plan := toN1(t)
	for _, plan.TunnelMTU = range []int{1230, 1400} {
		nodetest.In(t, n2, func() error {
			_, err := o.Apply(plan)
			return err
		})
	}
	for name, want := range map[string]string{"accept_ra": "0", "addr_gen_mode": "1"} {
		got := nodetest.Run(t, "ip", "netns", "exec", "n2", "cat", "/proc/sys/net/ipv6/conf/"+conf.Tunnel+"/"+name)
		if strings.TrimSpace(got) != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	if got := nodetest.Run(t, "ip", "-n", "n2", "-6", "addr", "show", "dev", conf.Tunnel); strings.Contains(got, "fe80") {
		t.Errorf("the kernel has made an address: %s", got)
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
	bridge.Repair(h, properties) // not reported: a new namespace has the kernel's defaults
	for ctx.Err() == nil {
		unlock, err := endpoint.Lock()
		if err != nil {
			return err
		}
		differences := bridge.Repair(h, properties)
		unlock()
		time.Sleep(time.Millisecond) // gives Apply a chance to get the lock
		for _, d := range differences {
			return errors.Join(fmt.Errorf("repaired: %w (%s)", d.Was, d.Property.Command()), d.Failed)
		}
	}
	return nil
}
