package agent

import (
	"fmt"
	"slices"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy/ruleset"
)

// gate remembers how the agent last applied the gate, the nftables table that checks tunnel packets. If inKernel is
// false, the kernel's table may differ.
type gate struct {
	inKernel bool
	plan     overlay.Plan
	version  int // the version of plan (overlayView.version)
	links    []string
	traffic  overlay.Traffic
	// generation is nf_tables' generation when the kernel's gate was last right. 0 means unknown.
	generation uint32
	blocked    []ruleset.Problem
}

// keepGate applies the gate if the wanted gate has changed or the last attempt failed, and at a resync if nf_tables may
// have changed. After an error, no pod is enrolled.
func (a *agent) keepGate(verify netfilter.Verify) error {
	if a.Node.Name == "" {
		return nil
	}
	g, plan, links := &a.overlay.gate, a.overlay.plan, a.foreignLinks()
	same := g.inKernel && g.version == a.overlay.version && slices.Equal(g.links, links)
	if same && verify != netfilter.All {
		return nil
	}
	generation, err := a.backend.Generation() // read before the gate is read, so any later change has a higher number
	if err != nil {
		generation = 0
	}
	var renewed bool
	var traffic overlay.Traffic
	if same && generation != 0 && generation == g.generation {
		traffic, err = overlay.ReadTraffic()
	} else {
		renewed, traffic, err = overlay.NewGate(plan, links).Apply()
	}
	if err != nil {
		g.inKernel = false
		return err
	}
	g.generation = generation
	if renewed && g.inKernel && g.plan.Options == plan.Options && g.plan.NodeAddress == plan.NodeAddress {
		a.stats.Repairs++
		a.Log.Warn("another program changed the nftables table inet weir-tunnel; weir has restored it")
	}
	if renewed { // the new table's counters begin at 0
		traffic = overlay.Traffic{}
	} else {
		g.blocked = blocked(a.Node, g.traffic, traffic, g.blocked)
	}
	g.inKernel, g.plan, g.version, g.links, g.traffic = true, plan, a.overlay.version, links, traffic
	return nil
}

// keepGateClosed is called while the nodes aren't known. If the kernel has no gate, or one of the gate's chains is
// missing, empty or at another hook, keepGateClosed makes a gate that accepts no tunnel packets. Any other existing
// gate stays as it is.
func (a *agent) keepGateClosed() error {
	if a.Node.Name == "" {
		return nil
	}
	return overlay.NewGate(overlay.Plan{Options: a.Node.Overlay}, a.foreignLinks()).EnsureExists()
}

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

// fewPackets: if the gate accepted at least this many packets, and none of them reached the tunnel, a firewall of the
// host is the likely reason.
const fewPackets = 3

// blocked returns a problem if a host firewall seems to drop tunnel packets. It compares two readings of the counters,
// before and now. If too few packets came between the readings, it returns the last result, which is in the parameter
// was.
func blocked(o NodeOptions, before, now overlay.Traffic, was []ruleset.Problem) []ruleset.Problem {
	if now.Accepted < before.Accepted || now.Delivered < before.Delivered { // a new table counts from 0
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
