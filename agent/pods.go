package agent

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
)

// guard repairs the spoof guard when the kernel is verified.
func (a *agent) guard(verify iptables.Verify) error {
	if verify != iptables.All && !a.lastSync.IsZero() {
		return nil
	}
	attaching := map[string]bool{} // ports that an ADD is still making: it puts their entries in
	lacked, fell, err := bridge.RepairGuard(func() ([]bridge.Sender, error) {
		// The records on disk, not those the loop has heard of: a pod may have come since. One that can't be read is
		// reported elsewhere, and its pod may send nothing.
		records, err := endpoint.List()
		if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) {
			return nil, err
		}
		var all []bridge.Sender
		for _, e := range records {
			mac, err := net.ParseMAC(e.MAC)
			if err != nil || e.Chained { // whose link is another plugin's
				continue
			}
			busy, err := endpoint.Busy(e.ID())
			attaching[e.HostIf] = busy || err != nil
			all = append(all, bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses})
		}
		return all, nil
	})
	var found []repair
	if fell {
		found = append(found, repair{"the guard's rules were not as they should be", "weir-agent run"})
	}
	for _, s := range lacked {
		if !attaching[s.HostIf] {
			found = append(found, repair{"the guard did not let port " + s.HostIf + " send as " + s.MAC.String(), s.Command()})
		}
	}
	if !a.lastSync.IsZero() { // else it may never have been there
		a.noteRepair(bridge.KindGuard, found)
	}
	return err
}

// open brings up the links of pods that started while no agent was there (enforcement "closed"), once they are in their
// classes.
func (a *agent) open() {
	for id, e := range a.endpoints {
		if e.Enforcement != conf.Closed || a.opened[id] || !a.knows(e) {
			continue
		}
		if e.Chained { // its link was never down
			a.opened[id], a.enrolled[id] = true, true
			continue
		}
		// What runs with an address from before a change of the Node's podCIDRs isn't touched.
		if why := a.misplaced(e); why != "" && !a.up(e) {
			a.Log.Error("a pod stays closed: the network configuration that it was made by is out of date",
				"pod", e.Pod.String(), "problem", why)
			a.opened[id] = true
			continue
		}
		// A link that isn't there yet is the plugin's to bring up; it asks to enrol first.
		if err := bridge.SetLinkUp(e.HostIf); err == nil {
			a.opened[id], a.enrolled[id] = true, true
		} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
			a.Log.Error("a pod stays closed: its link can't be brought up", "pod", e.Pod.String(), "error", err)
		}
	}
}
