package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

const statusLong = `Shows what is enforced on this node: faults (ERROR), problems, policies, pods, classes and sets.
It fails if the node isn't ready. If no agent answers, it shows the sets that the kernel still enforces, and fails.

With --cluster it asks the agents of all nodes through the API server, and shows the worst node first. It fails if a
node isn't ready or doesn't answer. With --node it shows what is enforced on that node. Both need the right to run
commands in weir's pods, as kubectl exec does. kubectl weir status asks all nodes.`

const statusExample = `  weirctl status
  kubectl weir status
  kubectl weir status --node ip-10-0-1-17.ec2.internal
  kubectl weir status -o json | jq -r '.nodes[] | select(.state != "ready") | .node + " " + .why'`

func statusCommand() *cobra.Command {
	var output, node string
	var cluster, all bool
	var nodes client.NodeFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is enforced: faults, problems, policies, pods, classes and sets",
		Long:  statusLong, Example: statusExample,
		Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			switch {
			case err != nil:
				return err
			case node != "":
				s, err := nodeStatus(cmd.Context(), &nodes, node)
				return showStatus(cmd, format, s, err)
			case cluster:
				return clusterStatus(cmd, &nodes, format, all)
			}
			s, err := client.Status(cmd.Context())
			if err != nil && cmd.Context().Err() == nil {
				s, err = fromKernel(err)
			}
			return showStatus(cmd, format, s, err)
		},
	}
	outputFlag(cmd, &output, "", "text", "json")
	cmd.Flags().BoolVar(&cluster, "cluster", isPlugin(), "ask all nodes, through the API server")
	cmd.Flags().StringVar(&node, "node", "", "ask this node, through the API server")
	cmd.Flags().BoolVar(&all, "all", false, "with --cluster: list each node, however well it is")
	nodes.AddFlags(cmd.Flags())
	nodes.CompleteFlags(cmd)
	return cmd
}

func showStatus(cmd *cobra.Command, format client.Format, s *agentapi.Status, err error) error {
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
}
