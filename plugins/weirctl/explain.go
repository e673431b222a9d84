package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
)

const explainLong = `Explains what happens to a new connection: whether the policies allow it, which policies isolate
its two ends, which rule allows it or comes nearest, and what would have to change.

FROM and TO are
  NAMESPACE/NAME       a pod, or a Service if no pod has the name (pod/NAMESPACE/NAME, svc/NAMESPACE/NAME)
  10.88.0.3, fd00::3   an address
  node/NAME            a node's own addresses; with a nodePort, the Service behind it
  world                any host outside of the cluster
PORT is a number or a name, and PROTO is tcp (the default), udp, sctp or icmp. Without a port, the explanation is about
all ports of a Service, or all named ports of a pod. An IPv6 address with a port is in brackets: [fd00::3]:80.

On a node, the agent answers, and the explanation has the kernel's rules and sets. On other machines the objects come
from the API server, and the kernel's part is left out. kubectl weir, or --cluster, also asks the agents of both ends'
nodes for their kernels' rules and sets. That needs the right to run commands in weir's pods; without it, the rest is
explained. With --source dir:PATH the objects come from files, without a cluster.

Exit codes:
  0  allowed
  1  it could not be found out: no agent, no API server, no rights
  2  the arguments are wrong, or name nothing
  3  dropped, at least in part, or nothing to reach
  4  the kernel doesn't do what the policies mean`

const explainExample = `  weirctl explain shop/web-0 shop/db:5432                 # from pod to pod
  weirctl explain shop/web-0 svc/shop/db:5432             # through a Service: each ready pod behind it
  weirctl explain shop/web-0 svc/kube-system/kube-dns:53/udp
  weirctl explain world svc/shop/web:443                  # from outside
  weirctl explain node/node-1 shop/web-0:8080             # probes, and all else that a node sends
  weirctl explain shop/web-0 192.0.2.10:443 -o json
  kubectl weir explain shop/web-0 shop/db:5432            # with both nodes' kernels
  weirctl explain shop/web-0 shop/db:5432 --source dir:manifests/   # before anything is applied`

func explainCommand() *cobra.Command {
	var source client.Source
	var output, namespace, agents string
	var cluster bool
	cmd := &cobra.Command{
		Use:     "explain FROM TO[:PORT[/PROTO]]",
		Short:   "Explain why a connection is allowed or dropped, and what would change that",
		Long:    explainLong,
		Example: explainExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return client.Usage(fmt.Errorf("explain needs two ends, FROM and TO[:PORT[/PROTO]], and got %d; "+
					"see weirctl explain --help", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			format := client.Format(output)
			if format != client.Text && format != client.JSON && format != client.YAML {
				return client.Usage(fmt.Errorf("-o %s: must be text, json or yaml", output))
			}
			question := explain.Question{From: args[0], To: args[1], Namespace: namespace}
			if cluster && source.Place == "" {
				source.Place = "kubernetes" // with --cluster, the API server is the default even on a node with an agent
			}
			e, err := answer(cmd.Context(), &source, question)
			if kind, _, _ := source.Kind(); err == nil && cluster && kind == client.FromKubernetes {
				addKernels(cmd.Context(), &client.NodeFlags{Source: source, Namespace: agents}, question, &e)
			}
			if input := (*explain.InputError)(nil); errors.As(err, &input) {
				return client.Usage(err)
			}
			if err != nil {
				return err
			}
			if err := printExplanation(cmd.OutOrStdout(), format, e); err != nil {
				return fmt.Errorf("print the explanation: %w", err)
			}
			return outcome(e)
		},
	}
	outputFlag(cmd, &output, "", "text", "json", "yaml")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "",
		"namespace of names without one; default: any that has the name")
	cmd.Flags().BoolVar(&cluster, "cluster", isPlugin(), "ask the agents of both ends' nodes, through the API server")
	cmd.Flags().StringVar(&agents, "weir-namespace", client.AgentNamespace, "with --cluster: the namespace of weir's pods")
	source.AddFlags(cmd.Flags())
	ends := source.CompleteEnds()
	cmd.ValidArgsFunction = func(c *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return ends(c, args, s)
	}
	source.CompleteFlags(cmd)
	return cmd
}

func outcome(e explain.Explanation) error {
	switch {
	case e.Differs():
		return client.Exit(client.ExitDiffers, errors.New("the kernel doesn't do what the policies mean"))
	case e.Result != explain.Allowed:
		return client.Exit(client.ExitDropped, nil)
	}
	return nil
}

// servicesWithin limits the look-up of Services for an agent. It is short, because this node may reach no API server.
const (
	loadsWithin    = time.Minute
	servicesWithin = 3 * time.Second
)

func answer(ctx context.Context, source *client.Source, question explain.Question) (explain.Explanation, error) {
	query, err := explain.Parse(question.From, question.To, question.Namespace)
	if err != nil {
		return explain.Explanation{}, err
	}
	kind, path, err := source.Kind()
	if err != nil {
		return explain.Explanation{}, err
	}
	if kind == client.FromAgent {
		return askAgent(ctx, source, query, question)
	}
	ctx, cancel := context.WithTimeout(ctx, loadsWithin)
	defer cancel()
	c, err := source.Load(ctx, query.From.Namespace, query.To.Namespace)
	if err != nil {
		return explain.Explanation{}, err
	}
	e, err := explain.Explain(c, query)
	if input := (*explain.InputError)(nil); errors.As(err, &input) {
		err = maybeHidden(input, query, c.Gaps)
	}
	if e.Source = "the API server"; kind == client.FromDirectory {
		e.Source = "the files in " + filepath.Clean(path)
		if filepath.Clean(path) == "." {
			e.Source = "the files in this directory"
		}
	}
	return e, err
}

// maybeHidden returns err. If err says that an end of the connection doesn't exist, and one of the gaps (sentences
// about objects that could not be read) says that the user may not read objects of this kind, maybeHidden adds this
// gap to the message, because the end may exist.
func maybeHidden(err *explain.InputError, q explain.Query, gaps []string) error {
	among := map[explain.EndKind]string{
		explain.EndService: " services", explain.EndNamed: " services", explain.EndNode: " nodes",
	}
	for _, end := range [...]explain.Ref{q.From, q.To} {
		objects := among[end.Kind]
		if objects == "" || !err.Misses(end) {
			continue
		}
		for _, gap := range gaps {
			_, listed, _ := strings.Cut(gap, " only in ")
			listed, _, _ = strings.Cut(listed, ", so ")
			if strings.Contains(gap, objects) && !slices.Contains(strings.Split(listed, ", "), end.Namespace) {
				return fmt.Errorf("%s, or it can't be seen: %s", err.Error(), gap)
			}
		}
	}
	return err
}

// askAgent asks this node's agent. An agent that watches the API server doesn't know Services, so askAgent looks them
// up itself.
func askAgent(
	ctx context.Context, source *client.Source, query explain.Query, question explain.Question,
) (explain.Explanation, error) {
	var failed error
	find := func(namespace string) {
		question.Services, failed = findServices(ctx, source, namespace)
	}
	switch query.To.Kind {
	case explain.EndService:
		find(query.To.Namespace)
	case explain.EndAddress, explain.EndNode: // the address may be a Service's, and the node may have a nodePort
		find("")
	}
	e, err := ask(ctx, question)
	input := (*explain.InputError)(nil)
	if query.To.Kind == explain.EndNamed && errors.As(err, &input) {
		if find(query.To.Namespace); len(question.Services) > 0 {
			e, err = ask(ctx, question)
		}
	}
	if errors.As(err, &input) && query.To.Kind == explain.EndService && failed != nil {
		return e, failed
	}
	return e, err
}

func ask(ctx context.Context, question explain.Question) (e explain.Explanation, err error) {
	err = client.Hinted(client.Post(ctx, agentapi.ExplainPath, question, &e), client.HintSource)
	if message, wrong := client.WrongInput(err); wrong {
		err = explain.NewInputError(message)
	}
	return e, err
}

func findServices(ctx context.Context, source *client.Source, namespace string) ([]policy.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, servicesWithin)
	defer cancel()
	config, err := source.Config()
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // an agent without Kubernetes knows the Services of its files
	}
	api, err := client.NewAPI(config)
	if err != nil {
		return nil, err
	}
	return api.Services(ctx, namespace)
}

func printExplanation(out io.Writer, f client.Format, e explain.Explanation) error {
	if f != client.Text {
		return client.PrintObject(out, f, e)
	}
	p := client.NewPrinter(out)
	explanationLines(p, e)
	return p.Err()
}
