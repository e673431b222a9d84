package agent

import (
	"fmt"
	"slices"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy/ruleset"
)

// gate is the gate for tunnel packets as it was last brought into the kernel: unless inKernel is true, nothing of the
// rest is known to be there.
type gate struct {
	inKernel bool
	plan     overlay.Plan
	links    []string
	traffic  overlay.Traffic
	// blocked is the problem that a firewall of the host drops tunnel packets, if it does.
	blocked []ruleset.Problem
}

// keepGate keeps the gate, which says from which nodes tunnel packets are accepted. Without it no pod is enrolled.
func (a *agent) keepGate(verify netfilter.Verify) error {
	if a.Node.Name == "" {
		return nil
	}
	g, plan, links := &a.ways.gate, a.ways.plan, a.foreignLinks()
	if g.inKernel && verify != netfilter.All && g.plan.Equal(plan) && slices.Equal(g.links, links) {
		return nil
	}
	renewed, traffic, err := overlay.NewGate(plan, links).Apply()
	if err != nil {
		g.inKernel = false
		return err
	}
	if renewed && g.inKernel && g.plan.Options == plan.Options && g.plan.NodeAddress == plan.NodeAddress {
		a.stats.Repairs++
		a.Log.Warn("another program changed the nftables table inet weir-tunnel; weir has restored it")
	}
	if renewed { // the counters begin anew
		traffic = overlay.Traffic{}
	} else {
		g.blocked = blocked(a.Node, g.traffic, traffic, g.blocked)
	}
	g.inKernel, g.plan, g.links, g.traffic = true, plan, links, traffic
	return nil
}

// keepGateClosed is keepGate while it isn't known which nodes there are.
func (a *agent) keepGateClosed() error {
	if a.Node.Name == "" {
		return nil
	}
	return overlay.NewGate(overlay.Plan{Options: a.Node.Overlay}, a.foreignLinks()).EnsureExists()
}

// foreignLinks are those that other plugins made for pods.
func (a *agent) foreignLinks() []string {
	var names []string
	for _, e := range a.records.endpoints {
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

// fewPackets are too few to tell a firewall from bad luck.
const fewPackets = 3

// blocked says whether a firewall of the host drops what the gate has accepted since. The usual reason is a rule that
// accepts tunnel packets by connection state: they are untracked, and neither NEW nor ESTABLISHED.
func blocked(o NodeOptions, before, now overlay.Traffic, was []ruleset.Problem) []ruleset.Problem {
	if now.Accepted < before.Accepted || now.Delivered < before.Delivered { // the table is new, and counts from 0
		before = overlay.Traffic{}
	}
	switch {
	case now.Delivered > before.Delivered:
		return nil
	case now.Accepted-before.Accepted < fewPackets:
		return was
	}
	return []ruleset.Problem{{Object: "Node " + o.Name, Field: "host firewall", Message: fmt.Sprintf(
		"tunnel packets from other nodes come in, and a firewall of this host drops all of them: it must accept UDP port %d "+
			"from nodes without asking for a connection state, as tunnels are not tracked", o.Overlay.Port)}}
}
