package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

func dropsCommand() *cobra.Command {
	var output, pcap string
	var q agentapi.DropsQuery
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show packets that this node has dropped: who sent what to whom, and which policies isolate the pod",
		Long: "Shows the packets that this node has dropped and that the agent remembers, or with -f those that it drops\n" +
			"from now on. A line stands for all packets of one sender to one address and port within a second, and says how\n" +
			"many they are. Ingress is dropped on the server pod's node, egress on the client pod's node. The addresses are\n" +
			"those that the policies see: behind a Service that is the address and the port of the Service's pod.",
		Example: "  weirctl drops -f                                    # as they happen\n" +
			"  weirctl drops --since 5m --pod shop/db --port 5432  # of the last five minutes\n" +
			"  weirctl drops -f --pcap - | tcpdump -nr -           # the packets' headers",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			format, err := client.ParseFormat(output)
			if err != nil {
				return err
			}
			if q.Since < 0 {
				return client.Usage(fmt.Errorf("--since %s: must not be negative", q.Since))
			}
			printDrop := client.DropPrinter(cmd.OutOrStdout(), format)
			if q.Packets = pcap != ""; q.Packets {
				out, closeFile, err := create(cmd, pcap)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, closeFile()) }()
				w, err := client.NewPcapWriter(out)
				if err != nil {
					return fmt.Errorf("write %s: %w", pcap, err)
				}
				printDrop = w.Write
			}
			ctx := cmd.Context()
			var failed error
			err = agentapi.Drops(ctx, q, func(d *agentapi.Drop) bool {
				failed = printDrop(d)
				return failed == nil
			})
			if failed != nil {
				return fmt.Errorf("print drops: %w", failed)
			}
			switch {
			case ctx.Err() != nil: // Ctrl-C
				return nil
			case errors.Is(err, os.ErrPermission):
				return fmt.Errorf("%s may not be opened: run weirctl as root", agentapi.Socket)
			case errors.Is(err, agentapi.ErrNoAgent):
				return fmt.Errorf("%w: weirctl drops asks the agent of the node that it runs on, so run it there; in a "+
					"cluster: kubectl -n kube-system exec POD -c weir-agent -- weirctl drops", agentapi.ErrNoAgent)
			}
			if err == nil && q.Follow {
				err = errors.New("the agent has ended")
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&q.Follow, "follow", "f", false, "show drops as they happen, until Ctrl-C")
	flags.DurationVar(&q.Since, "since", 0,
		"show drops that are not older, such as 5m; default: all that the agent remembers, and with -f none of them")
	flags.StringVarP(&q.Namespace, "namespace", "n", "", "only if the sender or the receiver is in this namespace")
	flags.StringVar(&q.Pod, "pod", "", "only if this pod is the sender or the receiver: its name, or namespace/name")
	flags.StringVar(&q.Policy, "policy", "", "only if this policy isolates the pod: its name, or namespace/name")
	flags.Uint16Var(&q.Port, "port", 0, "only packets to this port")
	flags.StringVarP(&output, "output", "o", "text", "text or json (one value a line)")
	flags.StringVar(&pcap, "pcap", "",
		"write the headers of each line's first packet to this file, for tcpdump; - for stdout")
	return cmd
}

// create creates the file, or returns the command's output if the name is "-".
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
