package agent

import (
	"bytes"
	"fmt"
	"os"

	"github.com/weir-net/weir/conf"
)

type conflist struct {
	mtu int // the MTU of pods' links in the configuration that was last written; 0: none was written yet
}

// writeConflist writes the runtime's network configuration once this node's address and MTU are known. Without that
// file, the runtime starts no pod.
func (a *agent) writeConflist() error {
	plan := a.overlay.plan
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
	tmp := a.Node.Conflist + ".tmp" // runtimes don't read files with this ending
	if err := os.WriteFile(tmp, want, 0o600); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if err := os.Rename(tmp, a.Node.Conflist); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	a.Log.Info("the runtime may start pods: its network configuration is written", "path", a.Node.Conflist)
	return nil
}
