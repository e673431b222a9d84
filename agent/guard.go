package agent

import (
	"errors"
	"net"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
)

// keepGuard repairs the spoof guard when the kernel is verified.
func (a *agent) keepGuard(verify netfilter.Verify) error {
	if verify != netfilter.All && !a.kernel.lastSync.IsZero() {
		return nil
	}
	attaching := map[string]bool{} // ports that an ADD is making: it puts their entries in
	lacked, fell, err := bridge.RepairGuard(func() ([]bridge.Sender, error) { return senders(attaching) })
	var repaired []repair
	if fell {
		repaired = append(repaired, repair{"the guard's rules were changed", "weir-agent run"})
	}
	for _, s := range lacked {
		if !attaching[s.HostIf] {
			was := "the guard did not allow port " + s.HostIf + " to send as " + s.MAC.String()
			repaired = append(repaired, repair{was, s.Command()})
		}
	}
	if !a.kernel.lastSync.IsZero() { // else it may never have been there
		a.countRepairs(bridge.KindGuard, repaired)
	}
	return err
}

// senders are what each port may send as, by the records on disk: a pod may have come that the loop hasn't read of. A
// record that can't be read is reported elsewhere, and its pod may send nothing. attaching gets the ports that an ADD
// is making.
func senders(attaching map[string]bool) ([]bridge.Sender, error) {
	records, err := endpoint.List()
	if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) {
		return nil, err
	}
	var all []bridge.Sender
	for _, e := range records {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || e.Chained { // another plugin's link
			continue
		}
		busy, err := endpoint.Busy(e.ID())
		attaching[e.HostIf] = busy || err != nil
		all = append(all, bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses})
	}
	return all, nil
}
