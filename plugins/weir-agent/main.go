// Command weir-agent is the node's reconciler: it keeps the kernel's sets and rules as the NetworkPolicies demand.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/policy/agent"
	"github.com/weir-net/weir/policy/kernel"
	"github.com/weir-net/weir/policy/manifests"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "weir-agent", Short: "Enforces NetworkPolicies on the pods of this node", SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(runCommand(), cleanupCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weir-agent:", err)
		return 1
	}
	return 0
}

func runCommand() *cobra.Command {
	var source, health string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Keep the kernel as the policies demand, until SIGTERM; what is enforced then stays enforced",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(source, "dir:")
			if !ok || path == "" {
				return fmt.Errorf("--source %s: must be dir:PATH", source)
			}
			return agent.Run(cmd.Context(), agent.Options{
				Source:        &manifests.Dir{Path: path},
				Log:           slog.New(slog.NewTextHandler(os.Stderr, nil)),
				HealthAddress: health,
				Resync:        10 * time.Second,
				EnrolWait:     5 * time.Second,
			})
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "where policies, pods and namespaces come from: dir:PATH, a directory of manifests")
	cmd.Flags().StringVar(&health, "health-address", "127.0.0.1:6786", "host:port for /healthz and /readyz")
	_ = cmd.MarkFlagRequired("source") // fails only for a flag that isn't defined
	return cmd
}

func cleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Take weir's rules, sets, spoof guard and bridge out of the kernel; pods that still run lose their network",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The bridge goes first: without it no pod reaches anybody, so taking the rules away opens nothing.
			links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("open netlink: %w", err)
			}
			defer links.Close()
			if err := bridge.Remove(links, bridge.Name, nil); err != nil {
				return err
			}
			if err := bridge.RemoveGuard(); err != nil {
				return err
			}
			driver, err := kernel.Open(cmd.Context())
			if err != nil {
				return err
			}
			defer driver.Close()
			return driver.Remove(cmd.Context())
		},
	}
}
