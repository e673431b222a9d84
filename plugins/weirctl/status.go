package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

func statusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is enforced: faults, problems, policies, pods, classes and sets",
		Long: "Shows what is enforced on this node: faults (ERROR), problems, policies, pods, classes and sets.\n" +
			"It fails if the node isn't ready. Without an agent it shows the sets that the kernel still enforces, and fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			if err != nil {
				return err
			}
			s, err := client.Status(cmd.Context())
			if errors.Is(err, agentapi.ErrNoAgent) {
				s, err = fromKernel(err)
			}
			if err != nil {
				return err
			}
			if err := client.PrintStatus(cmd.OutOrStdout(), format, s); err != nil {
				return fmt.Errorf("print the status: %w", err)
			}
			if !s.Ready {
				return errors.New("not ready: " + excerpt.List(s.Errors, "; "))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}
