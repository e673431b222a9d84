package agent

import (
	"errors"
	"net"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
)

func (a *agent) keepGuard(verify netfilter.Verify) error {
	if verify != netfilter.All && !a.kernel.lastSync.IsZero() {
		return nil
	}
	attaching := map[string]bool{} // ports that an ADD is making; the ADD adds their entries
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
	if !a.kernel.lastSync.IsZero() { // before the first sync, the guard may never have been made
		a.countRepairs(bridge.KindGuard, repaired)
	}
	return err
}

// senders reads the records on disk, because the loop may not have read a new one yet. attaching gets the ports
// that an ADD is making.
func senders(attaching map[string]bool) ([]bridge.Sender, error) {
	records, err := endpoint.List()
	if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) {
		return nil, err
	}
	var all []bridge.Sender
	for _, e := range records {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || e.Chained { // another plugin made the link
			continue
		}
		busy, err := endpoint.Busy(e.ID())
		attaching[e.HostIf] = busy || err != nil
		all = append(all, bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses})
	}
	return all, nil
}
