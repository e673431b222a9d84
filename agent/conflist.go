package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

type conflist struct {
	mtu int // the MTU of pods' links in the configuration that the agent last wrote; 0 before the first write
}

// writeConflist writes the runtime's network configuration once this node's address and MTU are known. Without that
// file, the runtime starts no pod. Plugins that other programs have appended stay in the file.
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
	have, err := os.ReadFile(a.Node.Conflist)
	if err == nil {
		if want, err = conf.WithAppended(want, have); err != nil || bytes.Equal(have, want) {
			return err
		}
	}
	if err := replaceFile(a.Node.Conflist, want); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	a.Log.Info("the runtime may start pods: its network configuration is written", "path", a.Node.Conflist)
	a.checkRuntime()
	return nil
}

// replaceFile replaces the file in one step. If the node loses power, the file has either its old or its new contents.
// An empty file would lose the plugins that other programs have appended.
func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp" // runtimes don't read files with this ending
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// checkRuntime reports a fault if the runtime uses another network's configuration. Until the agent has written its own
// configuration, that is no fault: a node that is being switched to weir may still have the other network's file.
func (a *agent) checkRuntime() {
	if a.conflist.mtu != 0 {
		a.faults.set(partRuntime, overtaken(a.Node.Conflist))
	}
}

// overtaken returns an error if the runtime doesn't use weir's network configuration, which has the path own. In a
// directory with several network configurations, the runtime uses the file whose name sorts first.
func overtaken(own string) error {
	dir, name := filepath.Split(own)
	files, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return fmt.Errorf("find out which network configuration the runtime uses: %w", err)
	}
	for _, f := range files {
		if f.Name() >= name {
			return nil
		}
		if f.IsDir() || !slices.Contains(conf.ConfigurationSuffixes, filepath.Ext(f.Name())) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) { // the file was removed after ReadDir
			continue
		}
		if err != nil {
			return fmt.Errorf("find out which network configuration the runtime uses: %w", err)
		}
		plugins, err := conf.Plugins(data)
		switch {
		case err != nil:
		case conf.LeadsToWeir(data, name):
			return nil
		default:
			return fmt.Errorf("the runtime uses %s (%s), because its name comes before %s: "+
				"no policy is enforced on new pods; remove the file", f.Name(), strings.Join(plugins, ", "), name)
		}
	}
	return nil
}
