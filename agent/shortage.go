package agent

import (
	"context"

	"github.com/weir-net/weir/ipam"
)

// reportShortage reports that no address is left for a new pod: in the log, the status and the metric weir_fault, and
// by an event on the Node when the shortage begins. The plugin's STATUS doesn't report it, because kubelet would evict
// running pods.
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
