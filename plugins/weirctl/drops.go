package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy/explain"
)

const dropsLong = `
Shows the packets that this node has dropped and that the agent remembers, or with -f those that it drops from
now on. A line stands for all packets of one sender to one address and port within a second, and says how many
they are. Ingress is dropped on the server pod's node, egress on the client pod's node. The addresses are those
that the policies see: behind a Service that is the address and the port of the Service's pod.

Packets that have passed, and that audited policies would drop, are shown too, with the words WOULD DROP. weirctl audit
sums them up.

As kubectl weir, or with --cluster, it shows the drops of all nodes, in the order of their times; with --node
those of some nodes. A node that doesn't answer is named on standard error, and the drops of the others are
shown. With -f, such a node is asked again, and nodes that join are asked too. That needs the right to run
commands in weir's pods, as kubectl exec does. The times are those of the nodes' clocks.

Exit codes:
  0  the drops were shown; with -f, after Ctrl-C
  1  a node has not answered, or no agent could be asked
  2  the arguments are wrong or name no node, or no drop matches and there is no such namespace, pod or policy`

const dropsExample = `  weirctl drops -f                                    # as they happen on this node
  weirctl drops --since 5m --pod shop/db --port 5432  # of the last five minutes
  weirctl drops -f --pcap - | tcpdump -nr -           # the packets' headers
  weirctl drops -f --audit                            # what audited policies would drop
  kubectl weir drops -f                               # of all nodes
  kubectl weir drops -f -n shop --policy deny         # of one namespace and one policy
  kubectl weir drops --node w1,w2 --since 1h -o json | jq -r .destination.pod | sort | uniq -c`

type dropsOptions struct {
	output, pcap string
	query        agentapi.DropsQuery
	cluster      bool
	names        []string
	nodes        client.NodeFlags
}

func dropsCommand() *cobra.Command {
	var o dropsOptions
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show packets that were dropped: who sent what to whom, and which policies isolate the pod",
		Long:  dropsLong[1:], Example: dropsExample,
		Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			printDrop, closeOutput, err := o.printer(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeOutput()) }()
			if o.query.Follow {
				go o.warnOfUnknown(cmd)
			}
			shown := 0
			counted := func(d *agentapi.Drop) error {
				shown++
				return printDrop(d)
			}
			if o.cluster || len(o.names) > 0 {
				err = o.ofNodes(cmd.Context(), counted)
			} else {
				err = o.ofThisNode(cmd.Context(), counted)
			}
			if err == nil && shown == 0 && !o.query.Follow {
				if err := o.checkNames(cmd.Context()); err != nil {
					return client.Usage(err)
				}
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "weirctl: note: no drop that the agents remember matches")
			}
			return err
		},
	}
	flags, q := cmd.Flags(), &o.query
	flags.BoolVarP(&q.Follow, "follow", "f", false, "show drops as they happen, until Ctrl-C")
	flags.Var((*spanFlag)(&q.Since), "since",
		"show drops that are not older, such as 5m; default: all that the agent remembers, and with -f none of them")
	flags.StringVarP(&q.Namespace, "namespace", "n", "", "only if the sender or the receiver is in this namespace")
	flags.StringVar(&q.Pod, "pod", "", "only if this pod is the sender or the receiver: its name, or namespace/name")
	flags.StringVar(&q.Policy, "policy", "", "only if this policy isolates the pod: its name, or namespace/name")
	flags.StringVar(&q.Reason, "reason", "", "only if dropped for this reason: "+reasons())
	client.CompleteWords(cmd, "reason", reasonNames()...)
	flags.Var((*portFlag)(&q.Port), "port", "only packets to this port")
	flags.BoolVar(&q.Audit, "audit", false, "only packets that passed, and that audited policies would drop")
	outputFlag(cmd, &o.output, " (one value a line)", "text", "json")
	flags.StringVar(&o.pcap, "pcap", "",
		"write the headers of each line's first packet to this file, for tcpdump; - for stdout")
	flags.BoolVar(&o.cluster, "cluster", isPlugin(), "show the drops of all nodes, through the API server")
	flags.StringSliceVar(&o.names, "node", nil, "show the drops of these nodes, through the API server")
	o.nodes.AddFlags(flags)
	o.nodes.CompleteFlags(cmd)
	return cmd
}

type portFlag uint16

// Set accepts the ports from 1 to 65535.
func (p *portFlag) Set(text string) error {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return errors.New("must be a port from 1 to 65535, without a protocol")
	}
	*p = portFlag(port)
	return nil
}

func (p *portFlag) String() string { return strconv.Itoa(int(*p)) }

// Type returns the value's name in the help.
func (p *portFlag) Type() string { return "port" }

func (o *dropsOptions) printer(cmd *cobra.Command) (func(*agentapi.Drop) error, func() error, error) {
	format, err := client.ParseFormat(o.output)
	if err != nil {
		return nil, nil, err
	}
	if r := o.query.Reason; r != "" && !slices.Contains(reasonNames(), r) {
		return nil, nil, client.Usage(fmt.Errorf("--reason %s: must be one of %s", r, reasons()))
	}
	printDrop, closeOutput := client.DropPrinter(cmd.OutOrStdout(), format), func() error { return nil }
	if o.query.Packets = o.pcap != ""; o.query.Packets {
		out, closeFile, err := create(cmd, o.pcap)
		if err != nil {
			return nil, nil, err
		}
		w, err := client.NewPcapWriter(out)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("write %s: %w", o.pcap, err), closeFile())
		}
		printDrop, closeOutput = w.Write, closeFile
	}
	return func(d *agentapi.Drop) error {
		if err := printDrop(d); err != nil {
			return fmt.Errorf("print drops: %w", err)
		}
		return nil
	}, closeOutput, nil
}

func reasonNames() (names []string) {
	for _, r := range agentapi.Reasons {
		names = append(names, r.Reason)
	}
	return names
}

func reasons() string { return strings.Join(reasonNames(), ", ") }

func (o *dropsOptions) checkNames(ctx context.Context) error {
	return checkNames(ctx, o.nodes.Source, o.cluster || len(o.names) > 0, o.query)
}

// checkNames returns an error if the namespace, the pod or the policy of the query doesn't exist now. It asks this
// node's agent, or the API server if cluster is true. A name that doesn't exist now can still be right, because agents
// remember drops and flows of pods that have ended.
func checkNames(ctx context.Context, source client.Source, cluster bool, q agentapi.DropsQuery) error {
	if q.Namespace+q.Pod+q.Policy == "" {
		return nil
	}
	if source.Place = "agent"; cluster {
		source.Place = "kubernetes"
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	c, err := source.Load(ctx)
	if err != nil || len(c.Gaps) > 0 {
		return nil //nolint:nilerr // whether the names exist is unknown
	}
	if q.Namespace != "" {
		err = checkNamespace(c, q.Namespace)
	}
	if q.Pod != "" && err == nil {
		err = explain.CheckName("pod", q.Pod, c.PodNames())
	}
	if q.Policy != "" && err == nil {
		err = explain.CheckName("NetworkPolicy", q.Policy, namesOf(c.Policies))
	}
	return err
}

// checkNamespace returns an error with the nearest names if there is neither a namespace of this name nor a pod in it.
func checkNamespace(c explain.Cluster, namespace string) error {
	var all []string
	for _, n := range c.Namespaces {
		all = append(all, n.Name)
	}
	inside := func(pod string) bool { return strings.HasPrefix(pod, namespace+"/") }
	if slices.Contains(all, namespace) || slices.ContainsFunc(c.PodNames(), inside) {
		return nil
	}
	return fmt.Errorf("there is no namespace %q and no pod in it%s", namespace, explain.NearNames(namespace, all))
}

// warnOfUnknown prints a note if a name in the query doesn't exist now. The object may appear later, so the command
// goes on.
func (o *dropsOptions) warnOfUnknown(cmd *cobra.Command) {
	if err := o.checkNames(cmd.Context()); err != nil {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "weirctl: note: %s; waiting for drops all the same, in case it appears\n",
			agentapi.OneLine(err.Error()))
	}
}

func (o *dropsOptions) ofThisNode(interrupted context.Context, printDrop func(*agentapi.Drop) error) error {
	ctx, stop := context.WithCancelCause(interrupted)
	defer stop(nil)
	within := answersWithin
	if o.query.Follow {
		within = client.DefaultFollowTimes.Silent
	}
	silence := time.AfterFunc(within, func() { stop(fmt.Errorf("the agent has not answered for %s", within)) })
	defer silence.Stop()
	var failed error
	err := agentapi.Drops(ctx, o.query, func(d *agentapi.Drop) bool {
		silence.Stop() // this command's slow output doesn't count as the agent's silence
		if d != nil {
			failed = printDrop(d)
		}
		silence.Reset(within)
		return failed == nil
	})
	switch {
	case failed != nil:
		return failed
	case interrupted.Err() != nil && o.query.Follow:
		return nil //nolint:nilerr // Ctrl-C is the usual end of the command
	case interrupted.Err() != nil:
		return errInterrupted
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if err == nil && o.query.Follow {
		err = errors.New("the agent has ended")
	}
	return client.Hinted(err, client.HintNode)
}

func (o *dropsOptions) ofNodes(ctx context.Context, printDrop func(*agentapi.Drop) error) error {
	cluster, err := o.nodes.Cluster()
	if err != nil {
		return err
	}
	question := client.DropsOfNodes{
		Query: o.query, Nodes: o.names, Print: printDrop,
		AskOptions: client.AskOptions{Parallel: o.nodes.Parallel, Within: answersWithin},
		Tell:       func(line string) { fmt.Fprintln(os.Stderr, "weirctl:", agentapi.OneLine(line)) },
	}
	if !o.query.Follow {
		return cluster.Drops(ctx, question, client.NewProgress(os.Stderr))
	}
	err = cluster.FollowDrops(ctx, question, client.DefaultFollowTimes)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // Ctrl-C is the usual end of the command
	}
	return err
}

func create(cmd *cobra.Command, name string) (out io.Writer, closeIt func() error, err error) {
	if name == "-" {
		return cmd.OutOrStdout(), func() error { return nil }, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}
