package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func installCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "install DIRECTORY",
		Short: "Copy the CNI plugin to the directory where the runtime looks for plugins",
		Long: "Copies the CNI plugin to DIRECTORY, where the runtime looks for plugins. It replaces an older plugin in\n" +
			"one step: the runtime finds the old or the new one, and never a part.",
		Example: "  weir-agent install /opt/cni/bin",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find the plugin beside weir-agent: %w", err)
			}
			return install(filepath.Join(filepath.Dir(self), "weir"), filepath.Join(args[0], "weir"))
		},
	}
}

// install replaces the file in one step, because a runtime may run the plugin at that moment.
func install(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.CreateTemp(filepath.Dir(to), ".weir-")
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if err == nil {
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", to, err)
	}
	return nil
}
