package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/plugins/weirctl/podcheck"
)

type podCheckOptions struct {
	names        []string
	image, world string
	maxNodes     int
	timeout      time.Duration
	nodes        client.NodeFlags
}

func checkPods(cmd *cobra.Command, o *podCheckOptions, format client.Format) error {
	switch {
	case o.timeout <= 0:
		return client.Usage(fmt.Errorf("--timeout %s: must be more than 0", o.timeout))
	case o.maxNodes < 1:
		return client.Usage(fmt.Errorf("--max-nodes %d: must be 1 or more", o.maxNodes))
	}
	cluster, err := o.nodes.Cluster()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	check := podcheck.Check{
		Cluster: cluster, Nodes: o.names, MaxNodes: o.maxNodes, Image: o.image, World: o.world,
		Parallel: o.nodes.Parallel, Ends: o.timeout, Times: podcheck.DefaultTimes,
		Tell:     func(l podcheck.Line) { printCheckLine(out, format, l) },
		Progress: client.NewProgress(os.Stderr),
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), o.timeout, errCheckTime)
	defer cancel()
	report, err := check.Run(ctx)
	if report != nil && format == client.JSON {
		if err := client.PrintJSON(out, report); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(err, errCheckTime):
		return client.Exit(client.ExitTimeout, fmt.Errorf("%w; --timeout is %s", err, o.timeout))
	case err != nil:
		return err
	}
	if broken := report.Broken(); broken != "" {
		return client.Exit(client.ExitBroken, errors.New(broken))
	}
	return nil
}

var errCheckTime = errors.New("the check was not done in time")

// printCheckLine prints nothing if the format is JSON: the whole report is then printed at the end.
func printCheckLine(out io.Writer, format client.Format, l podcheck.Line) {
	if format == client.Text {
		_, _ = fmt.Fprintf(out, "%-16s  %-7s  %s\n", l.Check, l.State, agentapi.OneLine(l.Detail))
	}
}
