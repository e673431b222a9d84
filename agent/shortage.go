package agent

import (
	"context"

	"github.com/weir-net/weir/ipam"
)

// reportShortage says while no address is left for a new pod: in the log, the status, the metric weir_fault and, as it
// begins, an event on the Node. The plugin's STATUS stays silent, because its error would have running pods evicted.
func (a *agent) reportShortage(ctx context.Context) {
	shortage, err := ipam.Shortage()
	if shortage != nil {
		err = shortage
	}
	begins := shortage != nil && a.faults.now[partAddresses] == nil
	a.faults.set(partAddresses, err)
	if announcer, ok := a.Source.(Announcer); ok && begins {
		announcer.Announce(ctx, "NoPodAddresses", shortage.Error()+"; "+shortage.Remedy())
	}
}
