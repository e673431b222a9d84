package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

const checkLong = `
As kubectl weir, or with --cluster, it checks with real pods whether the cluster's network does what it should:
pod to pod on one node and across nodes, large packets, a Service, DNS, nodePorts, a host outside (--world), and
policies that deny and allow, for each address family that the pods have. It makes a namespace, with two pods of
weir's own image on each node, under the Pod Security level "restricted". It removes the namespace at its end,
after a failure, and after Ctrl-C. Namespaces that a killed check has left are removed by the next one. It needs
the rights to make namespaces and all that it makes in them, and to run commands in its pods.

Exit codes:
  0  nothing is broken
  1  it could not be found out
  2  the arguments are wrong
  6  the check was not done within --timeout
  7  something is broken: the last line says what`

const checkExample = `  kubectl weir check
  kubectl weir check --world example.com:443        # also a host outside of the cluster
  kubectl weir check --node w1,w2                   # only these nodes
  kubectl weir check -o json | jq -r '.checks[] | select(.state == "BROKEN") | .detail'`

func checkCommand() *cobra.Command {
	var output string
	var o podCheckOptions
	cmd := &cobra.Command{
		Use: "check", Short: "Check whether the network of the cluster works, with real pods",
		Long: checkLong[1:], Example: checkExample, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			if err != nil {
				return err
			}
			return checkPods(cmd, &o, format)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "text", "text or json")
	flags.StringSliceVar(&o.names, "node", nil, "check these nodes; default: all, at most --max-nodes")
	flags.IntVar(&o.maxNodes, "max-nodes", 10, "how many nodes to check; more are chosen at random")
	flags.StringVar(&o.image, "image", "", "image of the pods; default: that of weir's own pods")
	flags.StringVar(&o.world, "world", "", "a host outside of the cluster that pods must reach, as HOST:PORT")
	flags.DurationVar(&o.timeout, "timeout", 3*time.Minute, "how long the check may take")
	o.nodes.AddFlags(flags)
	return cmd
}
