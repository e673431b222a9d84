package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

const checkLong = `
On a node, weirctl checks whether the node has what weir needs, and whether other programs may disturb weir. It looks at
features of the kernel and their modules, sysctls, the table of connections, iptables' flavours, the runtime's
network configurations, what other networks have left, firewalld, portmap's version and kube-proxy's mode. Each
line says how to mend a fault. The check tries features of the kernel in a network namespace of its own, and changes
nothing on the node, but the kernel may load modules. It needs root.

As kubectl weir, or with --cluster, the command tests the cluster's network with real pods:
pod to pod on one node and across nodes, large packets, a Service, DNS, nodePorts, a host outside (--world), and
policies that deny and allow, for each address family that the pods have. The test makes a namespace, with two pods
of weir's own image on each node, under the Pod Security level "restricted". The namespace is removed at the end,
after a failure, and after Ctrl-C. The next check removes namespaces that a killed check has left. You need the
rights to make namespaces, pods, Services and NetworkPolicies, and to run commands in the pods.

Exit codes:
  0  nothing is broken
  1  it could not be found out
  2  the arguments are wrong
  6  the check was not done within --timeout
  7  something is broken: the last line says what`

const checkExample = `  weirctl check                                     # this node
  kubectl weir check                                # the cluster, with pods
  kubectl weir check --world example.com:443        # also a host outside of the cluster
  kubectl weir check --node w1,w2                   # only these nodes
  kubectl weir check -o json | jq -r '.checks[] | select(.state == "BROKEN") | .detail'`

func checkCommand() *cobra.Command {
	var output string
	var cluster bool
	var o podCheckOptions
	cmd := &cobra.Command{
		Use: "check", Short: "Check what weir needs of this node, or with real pods whether the cluster's network works",
		Long: checkLong[1:], Example: checkExample, Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			if err != nil {
				return err
			}
			if cluster {
				return checkPods(cmd, &o, format)
			}
			return checkNode(cmd, format)
		},
	}
	flags := cmd.Flags()
	outputFlag(cmd, &output, "", "text", "json")
	flags.BoolVar(&cluster, "cluster", isPlugin(), "check the cluster with pods, through the API server")
	flags.StringSliceVar(&o.names, "node", nil, "with --cluster: check these nodes; default: all, at most --max-nodes")
	flags.IntVar(&o.maxNodes, "max-nodes", 10, "with --cluster: how many nodes to check; more are chosen at random")
	flags.StringVar(&o.image, "image", "", "with --cluster: image of the pods; default: that of weir's own pods")
	flags.StringVar(&o.world, "world", "", "with --cluster: a host outside that pods must reach, as HOST:PORT")
	flags.DurationVar(&o.timeout, "timeout", 3*time.Minute, "with --cluster: how long the check may take")
	o.nodes.AddFlags(flags)
	o.nodes.CompleteFlags(cmd)
	return cmd
}
