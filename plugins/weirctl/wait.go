package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
)

const waitLong = `
Waits until every node that a policy or pod concerns enforces its newest version, with the newest pods, namespaces
and labels. The output names the nodes that don't enforce it yet, with the reason.

A policy concerns the nodes of all pods of its namespace. A pod concerns its own node, and all nodes with a pod in a
namespace that has policies: a policy may name it as a peer, or may have named it before. With --deleted, the command
waits until no node enforces the deleted policy any more.

The command needs the rights to list all pods, namespaces, nodes and policies, and to run commands in weir's pods, as
kubectl exec does.

Exit codes: 0 if the object is enforced, 6 if it isn't within the timeout, 1 if that can't be found out, 2 if the
arguments are wrong or name nothing.`

const waitExample = `  kubectl apply -f deny.yaml && kubectl weir wait policy shop/deny
  kubectl weir wait pod shop/db-0 --timeout 30s
  kubectl -n shop delete networkpolicy old && kubectl weir wait policy shop/old --deleted`

func waitCommand() *cobra.Command {
	var output string
	var timeout time.Duration
	var deleted bool
	var nodes client.NodeFlags
	cmd := &cobra.Command{
		Use: "wait {policy|pod} NAMESPACE/NAME", Short: "Wait until every node enforces a policy, or knows a pod",
		Long: waitLong[1:], Example: waitExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return client.Usage(errors.New("wait needs two arguments: policy or pod, and NAMESPACE/NAME"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := client.ParseFormat(output)
			if err != nil {
				return client.Usage(err)
			}
			kind := map[string]string{
				"policy": "policy", "networkpolicy": "policy", "netpol": "policy", "pod": "pod", "po": "pod",
			}[args[0]]
			namespace, name, ok := strings.Cut(args[1], "/")
			switch {
			case kind == "":
				return client.Usage(fmt.Errorf("wait %s: must be policy or pod", args[0]))
			case !ok || namespace == "" || name == "" || strings.Contains(name, "/"):
				return client.Usage(fmt.Errorf("wait %s %s: must be NAMESPACE/NAME", args[0], args[1]))
			case timeout <= 0:
				return client.Usage(fmt.Errorf("--timeout %s: must be more than 0", timeout))
			case deleted && kind != "policy":
				return client.Usage(errors.New("--deleted is for policies"))
			}
			cluster, err := nodes.Cluster()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, client.ErrTimeout)
			defer cancel()
			w := client.Wait{
				Kind: kind, Name: policy.Name{Namespace: namespace, Name: name}, Deleted: deleted,
				AskOptions: client.AskOptions{Parallel: nodes.Parallel, Within: answersWithin},
				Progress:   client.NewProgress(os.Stderr),
			}
			result, err := cluster.Wait(ctx, w)
			w.Progress.Clear()
			return printWait(cmd, format, result, err)
		},
	}
	outputFlag(cmd, &output, "", "text", "json")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	cmd.Flags().BoolVar(&deleted, "deleted", false, "wait until no node enforces the deleted policy any more")
	nodes.AddFlags(cmd.Flags())
	cmd.ValidArgsFunction = completeWaited(&nodes)
	return cmd
}

func completeWaited(nodes *client.NodeFlags) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return []string{"policy", "pod"}, cobra.ShellCompDirectiveNoFileComp
		case len(args) == 1 && args[0] == "pod":
			return nodes.CompletePods()(c, args, begin)
		case len(args) == 1:
			return nodes.CompletePolicies()(c, args, begin)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

func printWait(cmd *cobra.Command, format client.Format, r client.Waited, err error) error {
	timeout := errors.Is(err, client.ErrTimeout)
	if err != nil && !timeout {
		return err
	}
	if format == client.JSON {
		if err := client.PrintJSON(cmd.OutOrStdout(), r); err != nil {
			return err
		}
	}
	object := fmt.Sprintf("%s %s/%s", r.Kind, r.Namespace, r.Name)
	if !timeout {
		if format == client.JSON {
			return nil
		}
		version := "is gone, and nothing of it is enforced"
		if r.UID != "" {
			is := "is enforced"
			if r.Audited {
				is = "is audited, and not enforced,"
			}
			version = fmt.Sprintf("(UID %s, resourceVersion %s) %s", r.UID, r.ResourceVersion, is)
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s on %d nodes\n", object, version, len(r.Nodes))
		return err
	}
	if why := r.Missing[client.NoNode]; why != "" {
		return client.Exit(client.ExitTimeout, fmt.Errorf("%s is %w: %s (kubectl -n %s describe pod %s)", object,
			client.ErrTimeout, why, r.Namespace, r.Name))
	}
	for _, node := range slices.Sorted(maps.Keys(r.Missing)) {
		if format == client.Text {
			if err := client.PrintLine(cmd.OutOrStdout(), node+": "+r.Missing[node]); err != nil {
				return err
			}
		}
	}
	return client.Exit(client.ExitTimeout, fmt.Errorf("%s is %w: %d of %d nodes lack it", object, client.ErrTimeout,
		len(r.Missing), len(r.Nodes)))
}
