package agent

import (
	"bytes"
	"fmt"
	"os"

	"github.com/weir-net/weir/conf"
)

// conflist is the network configuration that makes the runtime call the plugin, as far as the agent writes it.
type conflist struct {
	mtu int // of pods' links; 0: not known yet
}

// writeConflist writes the runtime's network configuration, whole and last: a node without it isn't ready, so no pod
// starts where policy isn't enforced yet.
func (a *agent) writeConflist() error {
	plan := a.ways.plan
	if a.Node.Conflist == "" || !plan.NodeAddress.IsValid() || plan.MTU == 0 {
		return nil
	}
	want, err := conf.Conflist(plan.Own, plan.MTU, conf.Strict)
	if err != nil {
		return err
	}
	a.conflist.mtu = plan.MTU
	if have, err := os.ReadFile(a.Node.Conflist); err == nil && bytes.Equal(have, want) {
		return nil
	}
	tmp := a.Node.Conflist + ".tmp" // no runtime takes a file of this name for a configuration
	if err := os.WriteFile(tmp, want, 0o600); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if err := os.Rename(tmp, a.Node.Conflist); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	a.Log.Info("the runtime may start pods: its network configuration is written", "path", a.Node.Conflist)
	return nil
}
