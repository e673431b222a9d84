package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

const flowsLong = `
Shows which connections the policies have allowed, with both ends, the port, how often and when last. The agent records
connections during a recording (--record), or always if it runs with --flows. Without a recording, the kernel has no
rule for this. During a recording it copies the first packet of each connection, at most 2,000 a second.

A line stands for all connections of a pod, or of an address, to one port of another. The agent keeps 8,192 lines.
As kubectl weir, or with --cluster, the command is about all nodes.

Exit codes:
  0  the flows were shown
  1  a node has not answered, no agent could be asked, or nothing was recorded
  2  the arguments are wrong, or no flow matches and there is no such namespace`

const flowsExample = `  weirctl flows --record 1h                 # record on this node for an hour
  weirctl flows                             # what was seen
  weirctl flows --stop
  kubectl weir flows --record 24h           # on all nodes
  kubectl weir flows --since 1h -n shop
  kubectl weir flows -o json > flows.json   # for weirctl suggest --flows flows.json`

type flowsFlags struct {
	since   time.Duration
	cluster bool
	nodes   client.NodeFlags
}

func flowsCommand() *cobra.Command {
	var f flowsFlags
	var output, namespace string
	var record time.Duration
	var stop bool
	cmd := &cobra.Command{
		Use: "flows", Short: "Show which connections the policies have allowed, and record them",
		Long: flowsLong[1:], Example: flowsExample,
		Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			switch {
			case err != nil:
				return err
			case stop && record > 0:
				return client.Usage(errors.New("--record and --stop exclude each other"))
			}
			var order *agentapi.FlowsOrder
			if stop || record > 0 {
				order = &agentapi.FlowsOrder{For: record}
			}
			all, err := f.ask(cmd.Context(), order)
			if len(all) == 0 {
				return err
			}
			if order != nil && format == client.Text {
				return errors.Join(printRecording(cmd.OutOrStdout(), all), err)
			}
			shown := keepNamespace(all, namespace)
			if shown == 0 && order == nil && err == nil {
				query := agentapi.DropsQuery{Namespace: namespace}
				if err := checkNames(cmd.Context(), f.nodes.Source, f.cluster, query); err != nil {
					return client.Usage(err)
				}
			}
			err = errors.Join(printFlows(cmd.OutOrStdout(), format, all), err)
			if shown == 0 && err == nil {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "weirctl: note: no recorded flow matches")
			}
			return err
		},
	}
	f.addFlags(cmd)
	cmd.Flags().Var((*spanFlag)(&record), "record", "record flows from now on, for this long, such as 1h; at most 168h")
	cmd.Flags().BoolVar(&stop, "stop", false, "end the recording")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only if the sender or the receiver is in this namespace")
	outputFlag(cmd, &output, "", "text", "json")
	f.nodes.CompleteFlags(cmd)
	return cmd
}

func (f *flowsFlags) addFlags(cmd *cobra.Command) {
	cmd.Flags().Var((*spanFlag)(&f.since), "since", "flows that were seen within this time, such as 1h; default: all")
	cmd.Flags().BoolVar(&f.cluster, "cluster", isPlugin(), "ask all nodes, through the API server")
	f.nodes.AddFlags(cmd.Flags())
}

// ask may return the answers of some nodes together with an error about other nodes.
func (f *flowsFlags) ask(ctx context.Context, order *agentapi.FlowsOrder) ([]agentapi.Flows, error) {
	path := agentapi.FlowsQuery(f.since)
	if !f.cluster {
		var one agentapi.Flows
		ask := func() error { return client.Get(ctx, path, &one) }
		if order != nil {
			ask = func() error { return client.Post(ctx, path, order, &one) }
		}
		if err := ask(); err != nil {
			return nil, usage(client.Hinted(err, client.HintCluster))
		}
		return []agentapi.Flows{one}, nil
	}
	cluster, agents, err := f.nodes.Agents(ctx)
	if err != nil {
		return nil, err
	}
	var question any
	if order != nil {
		question = order
	}
	var all []agentapi.Flows
	var failed []string
	err = client.AskAll(ctx, agents, client.AskOptions{Parallel: f.nodes.Parallel, Within: answersWithin},
		func(ctx context.Context, of client.Agent) (v agentapi.Flows, err error) {
			return v, cluster.Ask(ctx, of, path, question, &v)
		},
		func(a client.Answer[agentapi.Flows]) {
			if a.Err != nil {
				failed = append(failed, a.Node+": "+a.Err.Error())
				return
			}
			a.Value.Node = a.Node
			all = append(all, a.Value)
		})
	slices.SortFunc(all, func(a, b agentapi.Flows) int { return strings.Compare(a.Node, b.Node) })
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("%d of %d nodes have not answered: %s", len(failed), len(agents), strings.Join(failed, "; "))
	}
	return all, err
}

func usage(err error) error {
	if message, wrong := client.WrongInput(err); wrong {
		return client.Usage(errors.New(message))
	}
	return err
}

func printRecording(out io.Writer, all []agentapi.Flows) error {
	for _, f := range all {
		of, until := "", "flows are not recorded"
		if f.Node != "" {
			of = agentapi.OneLine(f.Node) + ": "
		}
		if left := time.Until(f.Until); left > 0 {
			until = "flows are recorded until " + f.Until.Local().Format(time.DateTime)
		}
		if _, err := fmt.Fprintln(out, of+until); err != nil {
			return err
		}
	}
	return nil
}

var errNothingRecorded = errors.New("no flows were recorded: weirctl flows --record 1h records them for an hour")

// keepNamespace keeps only the flows from or to the namespace. An empty namespace keeps all flows. keepNamespace
// returns how many flows are left.
func keepNamespace(all []agentapi.Flows, namespace string) (left int) {
	for i := range all {
		all[i].Flows = slices.DeleteFunc(all[i].Flows, func(f agentapi.Flow) bool {
			return namespace != "" && !inNamespace(f.Source, namespace) && !inNamespace(f.Destination, namespace)
		})
		left += len(all[i].Flows)
	}
	return left
}

func printFlows(out io.Writer, format client.Format, all []agentapi.Flows) error {
	recorded := slices.ContainsFunc(all, func(f agentapi.Flows) bool { return !f.Since.IsZero() })
	if format == client.JSON {
		if err := excerpt.WriteJSON(out, "", all); err != nil {
			return err
		}
	}
	switch {
	case !recorded:
		return errNothingRecorded
	case format == client.JSON:
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush returns any error
	line("LAST\tCOUNT\tFROM\tTO\tPROTOCOL\tNODE")
	for _, n := range all {
		for _, f := range n.Flows {
			to := agentapi.DropEnd{
				Pod: f.Destination.Pod, Node: f.Destination.Node, Address: f.Destination.Address, Port: f.Port,
			}
			line("%s\t%d\t%s\t%s\t%s\t%s", f.Last.Local().Format(time.DateTime), f.Count, agentapi.OneLine(f.Source.String()),
				agentapi.OneLine(to.String()), agentapi.OneLine(f.Protocol), agentapi.OneLine(n.Node))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range all {
		for _, note := range gaps(n) {
			_, _ = fmt.Fprintln(os.Stderr, "weirctl: note:", agentapi.OneLine(note))
		}
	}
	return nil
}

func gaps(f agentapi.Flows) (notes []string) {
	of := ""
	if f.Node != "" {
		of = f.Node + ": "
	}
	if f.Since.IsZero() {
		notes = append(notes, of+"no flows were recorded")
	}
	if f.Why != "" {
		notes = append(notes, of+"flows aren't recorded: "+f.Why)
	}
	if f.Unknown > 0 {
		notes = append(notes, fmt.Sprintf("%s%d packets belong to no flow that is known", of, f.Unknown))
	}
	if f.Forgotten > 0 {
		notes = append(notes, fmt.Sprintf("%s%d older flows were forgotten, because newer ones came", of, f.Forgotten))
	}
	return notes
}

func inNamespace(e agentapi.FlowEnd, namespace string) bool {
	for p := range strings.SplitSeq(e.Pod, ",") {
		if n, _, ok := strings.Cut(p, "/"); ok && n == namespace {
			return true
		}
	}
	return false
}
