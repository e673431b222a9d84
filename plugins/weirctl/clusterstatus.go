package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

const answersWithin = 15 * time.Second

func clusterStatus(cmd *cobra.Command, flags *client.NodeFlags, format client.Format, all bool) error {
	cluster, agents, err := flags.Agents(cmd.Context())
	if err != nil {
		return err
	}
	s := client.NewClusterStatus(len(agents))
	progress := client.NewProgress(os.Stderr)
	err = client.AskAll(cmd.Context(), agents, client.AskOptions{Parallel: flags.Parallel, Within: answersWithin},
		func(ctx context.Context, of client.Agent) (*agentapi.Summary, error) {
			var sum agentapi.Summary
			return &sum, cluster.Ask(ctx, of, agentapi.SummaryPath, nil, &sum)
		},
		func(a client.Answer[*agentapi.Summary]) {
			s.Add(a)
			progress.Say("asked %d of %d nodes: %s", len(s.Nodes), len(agents), s.Counts())
		})
	progress.Clear()
	if err != nil && len(s.Nodes) == 0 {
		return err
	}
	if printErr := client.PrintClusterStatus(cmd.OutOrStdout(), format, s, all); printErr != nil {
		return fmt.Errorf("print the status: %w", printErr)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%d of %d nodes were not asked: %w", len(agents)-len(s.Nodes), len(agents), err)
	case s.Bad() > 0:
		return errors.New("not ready: " + s.Counts())
	}
	return nil
}

func nodeStatus(ctx context.Context, flags *client.NodeFlags, node string) (*agentapi.Status, error) {
	cluster, agents, err := flags.Agents(ctx)
	if err != nil {
		return nil, err
	}
	of, err := client.Find(agents, node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answersWithin, fmt.Errorf("no answer within %s", answersWithin))
	defer cancel()
	s := &agentapi.Status{}
	if err := cluster.Ask(ctx, of, agentapi.StatusPath, nil, s); err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	return s, nil
}
