package agent

import (
	"context"

	"github.com/weir-net/weir/ipam"
)

// reportShortage reports whether no address is left for a new pod: in the log, the status and the metric weir_fault.
// When the shortage begins, it also reports an event on the Node. The plugin's STATUS doesn't report a shortage: the
// node would become not ready, and its running pods would be evicted.
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
