package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/kernel"
)

// guard repairs the spoof guard when the kernel is verified, and what has other plugins' bridges go through the rules.
func (a *agent) guard(verify kernel.Verify) error {
	if verify != kernel.All && !a.lastSync.IsZero() {
		return nil
	}
	filtered := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(a.endpoints)) {
		name := a.endpoints[id].BridgeIf
		if name == "" || filtered[name] {
			continue
		}
		filtered[name] = true
		if err := bridge.FilterBridged(a.links, name); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return err
		}
	}
	return bridge.RepairGuard(func() ([]bridge.Sender, error) {
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
			all = append(all, bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses})
		}
		return all, nil
	})
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
		// A link that isn't there yet is the plugin's to bring up; it asks to enrol first.
		if err := bridge.Open(e.HostIf); err == nil {
			a.opened[id], a.enrolled[id] = true, true
		} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
			a.Log.Error("a pod stays closed: its link can't be brought up", "pod", e.Pod.String(), "error", err)
		}
	}
}

// cut ends connections that are no longer let through, and lets those go on that are again. Where a change only opens and
// nothing is cut, or nothing has changed since the last walk, there is nothing to be found: a table of 200,000
// connections takes a quarter of a second.
func (a *agent) cut(result kernel.Result) {
	a.uncut = a.uncut || result.Closes || (result.Changed && a.standing > 0)
	if !a.uncut {
		return
	}
	walk, err := a.judgeAnew()
	a.uncut, a.standing = err != nil, walk.Standing
	a.stats.Cut += walk.Cut
	if walk.Cut+walk.Restored > 0 {
		a.Log.Info("connections judged anew", "cut", walk.Cut, "restored", walk.Restored)
	}
	if err != nil {
		a.Log.Error("connections that should be cut may go on", "error", err)
	}
}

func (a *agent) judgeAnew() (kernel.Walk, error) {
	judge, err := policy.NewJudge(a.ruleset)
	if err != nil {
		return kernel.Walk{}, err
	}
	pods, own := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, e := range a.endpoints {
		for _, addr := range e.Addresses {
			pods[addr.Addr] = true
		}
	}
	addrs, err := a.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return kernel.Walk{}, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, addr := range addrs {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return kernel.Cut(judge, pods, own)
}
