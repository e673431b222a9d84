package agent

import (
	"context"

	"github.com/weir-net/weir/ipam"
)

// reportShortage reports a shortage of addresses in the agent's status. The plugin's STATUS doesn't report it, because
// then the node would become not ready and lose its running pods.
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
