package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

const auditLong = `
Shows which connections an audited NetworkPolicy would have dropped if it were enforced, by pair of pods and port,
and the rules that would allow them. These connections have passed. A policy is audited if it has the annotation
weir.io/audit: "true". Connections that no audited policy would drop any more, because a policy or a pod has
changed, are left out. Without a name, it lists the audited policies.

As kubectl weir, or with --cluster, it asks the agents of all nodes; with --node those of some nodes. That needs the
right to run commands in weir's pods, as kubectl exec does.

Exit codes:
  0  the report was shown
  1  an agent has not answered
  2  the arguments are wrong, or the policy is not audited`

const auditExample = `  weirctl audit                           # which policies are audited, on this node
  weirctl audit shop/db                   # what shop/db would have dropped on this node
  kubectl weir audit shop/db --since 24h  # on all nodes, what was seen in the last day
  kubectl weir audit shop/db -o json | jq '.wouldDrop[] | .peer.name'`

type auditOptions struct {
	output  string
	since   time.Duration
	cluster bool
	names   []string
	nodes   client.NodeFlags
}

func auditCommand() *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use:   "audit [NS/NAME]",
		Short: "Show what an audited policy would have dropped, and the rules that would allow it",
		Long:  auditLong[1:], Example: auditExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return client.Usage(fmt.Errorf("audit takes one policy, NAMESPACE/NAME, and got %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, strings.Join(args, "")) },
	}
	flags := cmd.Flags()
	flags.Var((*spanFlag)(&o.since), "since", "leave out connections that were last seen longer ago, such as 24h")
	outputFlag(cmd, &o.output, "", "text", "json")
	flags.BoolVar(&o.cluster, "cluster", isPlugin(), "ask all nodes, through the API server")
	flags.StringSliceVar(&o.names, "node", nil, "ask these nodes, through the API server")
	o.nodes.AddFlags(flags)
	cmd.ValidArgsFunction = func(c *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return o.nodes.CompleteAudited()(c, args, s)
	}
	o.nodes.CompleteFlags(cmd)
	return cmd
}

func (o *auditOptions) run(cmd *cobra.Command, name string) error {
	format, err := client.ParseFormat(o.output)
	if err != nil {
		return err
	}
	namespace, rest, _ := strings.Cut(name, "/")
	if name != "" && (namespace == "" || rest == "" || strings.Contains(rest, "/")) {
		return client.Usage(fmt.Errorf("%q: must be NAMESPACE/NAME of a NetworkPolicy", name))
	}
	var sum client.AuditOfNodes
	away, err := o.collect(cmd.Context(), name, &sum)
	if err != nil {
		return err
	}
	if name != "" && len(away) == 0 && !sum.Knows(name) && len(sum.Dropped) == 0 {
		return client.Usage(fmt.Errorf("no audited NetworkPolicy %q is known: weirctl audit lists the audited ones", name))
	}
	if sum.Nodes == 0 {
		return errors.New("no node has answered: " + cmp.Or(strings.Join(away, "; "), "no agent runs in this cluster"))
	}
	if err := client.PrintAudit(cmd.OutOrStdout(), format, &sum, name); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	if len(away) > 0 {
		return errors.New("the report lacks some nodes: " + strings.Join(away, "; "))
	}
	return nil
}

func (o *auditOptions) collect(ctx context.Context, name string, sum *client.AuditOfNodes) (away []string, err error) {
	var since time.Time
	if o.since > 0 {
		since = time.Now().Add(-o.since)
	}
	if !o.cluster && len(o.names) == 0 {
		r, err := client.Audit(ctx, name)
		if err == nil {
			sum.Add(r, since)
		}
		return nil, client.Hinted(err, client.HintNode)
	}
	cluster, err := o.nodes.Cluster()
	if err != nil {
		return nil, err
	}
	agents, err := cluster.Wanted(ctx, o.names)
	if err != nil {
		return nil, err
	}
	progress, asked := client.NewProgress(os.Stderr), 0
	err = client.AskAll(ctx, agents, client.AskOptions{Parallel: o.nodes.Parallel, Within: answersWithin},
		func(ctx context.Context, of client.Agent) (r agentapi.AuditReport, err error) {
			return r, cluster.Ask(ctx, of, client.AuditPath(name), nil, &r)
		},
		func(a client.Answer[agentapi.AuditReport]) {
			if asked++; a.Err != nil {
				away = append(away, a.Node+": "+a.Err.Error())
			} else {
				sum.Add(a.Value, since)
			}
			progress.Say("asked %d of %d nodes", asked, len(agents))
		})
	progress.Clear()
	slices.Sort(away)
	return away, err
}
