package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter/ipset"
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

// fromKernel returns the parts of the status that need no agent: noAgent as an error, the recorded pods, and the sets,
// which the kernel still enforces.
func fromKernel(noAgent error) (*agentapi.Status, error) {
	s := &agentapi.Status{Errors: []string{noAgent.Error() + "; the kernel goes on enforcing what it holds"}}
	pods, err := recorded()
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
	}
	s.Pods = pods
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		set, err := sets.List(h.Name)
		if err != nil {
			return nil, err
		}
		s.Sets = append(s.Sets, agentapi.SetStatus{Name: h.Name, Type: set.Type, Entries: len(set.Entries)})
	}
	return s, nil
}
