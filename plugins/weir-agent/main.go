// Command weir-agent is the node's reconciler: the command run keeps the kernel's sets and rules equal to the
// NetworkPolicies. Other commands check manifests, install the CNI plugin, and remove weir from the node.
//
// Invariants:
//   - The command decides nothing about policies: it reads flags, and connects the parts.
//   - Only one agent runs on a node, and cleanup refuses to run beside it.
//   - The policies stay enforced when the agent stops.
//   - cleanup removes weir's links before the rules, so no pod on weir0 has a link without rules.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weir-net/weir/agent"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/internal/version"
	"github.com/weir-net/weir/netfilter/flowlog"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/source/kube"
	"github.com/weir-net/weir/source/manifests"
)

// The agent finds a source's interfaces by type assertion. Without these lines, a changed signature would silently
// switch an interface off.
var (
	_ agent.Source    = (*kube.Source)(nil)
	_ agent.Lookup    = (*kube.Source)(nil)
	_ agent.Publisher = (*kube.Source)(nil)
	_ agent.Contact   = (*kube.Source)(nil)
	_ agent.Announcer = (*kube.Source)(nil)
	_ agent.Viewer    = (*kube.Source)(nil)

	_ agent.PodAnnouncer = (*kube.Source)(nil)
	_ agent.Positioner   = (*kube.Source)(nil)

	_ agent.Source = (*manifests.Dir)(nil)
	_ agent.Files  = (*manifests.Dir)(nil)
	_ agent.Viewer = (*manifests.Dir)(nil)
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "weir-agent", Short: "Enforces NetworkPolicies on the pods of this node",
		SilenceUsage: true, SilenceErrors: true,
	}
	// cobra's own --version needs a template. A template makes the linker keep every method, which nearly doubles
	// the program.
	showVersion := root.Flags().Bool("version", false, "print the commit of this program, its date, and Go's version")
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if !*showVersion {
			return cmd.Help()
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Of("weir-agent"))
		return err
	}
	root.AddCommand(runCommand(), checkCommand(), installCommand(), cleanupCommand(), waitCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weir-agent:", err)
		return 1
	}
	return 0
}

// bounded shortens strings and errors in the log, because they may quote objects' fields of any length.
func bounded(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case string:
		a.Value = slog.StringValue(excerpt.Of(v))
	case error:
		a.Value = slog.StringValue(excerpt.Of(v.Error()))
	}
	return a
}

func runCommand() *cobra.Command {
	var source, kubeconfig, encapsulation, backend string
	var ignoreBroken, drops bool
	var within []string
	o := agent.Options{
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: bounded})),
		Resync: 10 * time.Second, EnrolWait: 5 * time.Second,
	}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Enforce NetworkPolicies on this node until SIGTERM",
		Long: "Keeps the kernel's sets and rules equal to the NetworkPolicies, until SIGTERM. Sets and rules stay in the\n" +
			"kernel when the agent stops, so the policies stay enforced.",
		Example: "  weir-agent run --node-name node-1                 # policies from the Kubernetes API\n" +
			"  weir-agent run --source dir:/etc/weir/manifests   # policies from files",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := limitMemory(os.Getenv("MEMORY_LIMIT")); err != nil {
				return err
			}
			if o.Node.Overlay.Encapsulation, err = overlay.ParseEncapsulation(encapsulation); err != nil {
				return err
			}
			if err := o.Node.Overlay.Validate(); err != nil {
				return err
			}
			if o.Node.ClusterCIDRs, err = parseNetworks(within); err != nil {
				return err
			}
			if o.Source, err = newSource(source, kubeconfig, o.Node.Name, ignoreBroken, o.Log); err != nil {
				return err
			}
			if err := setBackend(&o, backend); err != nil {
				return err
			}
			o.NoDrops = !drops
			go newCollector().run(cmd.Context())
			return agent.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&source, "source", "kubernetes",
		"where policies, pods, namespaces and nodes come from: kubernetes, or dir:PATH, a directory of manifests")
	flags.StringVar(&backend, "backend", automatic,
		"where policies are enforced: iptables (with ipset), nftables, or auto: where kube-proxy has its rules")
	flags.DurationVar(&o.SettleChoice, "backend-settle", time.Minute,
		"with --backend auto: how long kube-proxy's rules must have been elsewhere before the agent moves there")
	flags.BoolVar(&ignoreBroken, "ignore-broken", false,
		"with --source dir:PATH: start although a file that may contain a policy can't be read; its pods may be open")
	flags.StringVar(&kubeconfig, "kubeconfig", "",
		"kubeconfig file to reach the API server from outside of the cluster; default: as a pod does")
	flags.StringVar(&o.HealthAddress, "health-address", "127.0.0.1:6786",
		"host:port where /healthz, /readyz and /metrics are answered")
	flags.BoolVar(&drops, "drops", true,
		"report dropped packets (weirctl drops, metrics); with --drops=false another program can read NFLOG group 88")
	flags.BoolVar(&o.DropEvents, "drop-events", false,
		"make events on pods whose packets were dropped; needs --source kubernetes")
	flags.BoolVar(&o.Flows, "flows", false,
		"record allowed connections all the time; without it, weirctl flows --record does so for a while")
	flags.StringVar(&o.DropsFile, "drops-file", "",
		"file to which dropped packets are written, as JSON values one a line; at 16 MiB it becomes FILE.1; default: none")
	flags.StringVar(&o.Node.Name, "node-name", os.Getenv("NODE_NAME"),
		"this node's name; with a name, the agent keeps the routes and tunnels to pods on other nodes")
	flags.StringVar(&encapsulation, "encapsulation", string(overlay.Always),
		"which packets to pods on other nodes travel in VXLAN: always, crossSubnet (to nodes in another subnet) or never")
	flags.Uint16Var(&o.Node.Overlay.Port, "overlay-port", conf.OverlayPort,
		"UDP port of the tunnels between nodes, the same on all of them")
	flags.Uint32Var(&o.Node.Overlay.VNI, "overlay-vni", conf.OverlayVNI,
		"VXLAN network identifier of the tunnels between nodes, the same on all of them")
	flags.StringSliceVar(&within, "cluster-cidr", nil,
		"networks that contain all podCIDRs, separated by commas; a podCIDR outside of them doesn't count; default: any")
	flags.StringVar(&o.Node.Conflist, "conflist", "",
		"where to write the runtime's network configuration once policy is enforced; default: none is written")
	return cmd
}

func parseNetworks(list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--cluster-cidr %q: must be networks such as 100.64.0.0/10, separated by commas", s)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func newSource(source, kubeconfig, node string, ignoreBroken bool, log *slog.Logger) (agent.Source, error) {
	if path, ok := strings.CutPrefix(source, "dir:"); ok && path != "" {
		return &manifests.Dir{Path: path, IgnoreBroken: ignoreBroken, Node: kubeletName(node)}, nil
	}
	if source != "kubernetes" {
		return nil, fmt.Errorf("--source %s: must be kubernetes or dir:PATH", source)
	}
	if node == "" {
		return nil, errors.New("--node-name (or NODE_NAME) is missing: it says which Node this is")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("configure the API client: %w", err)
	}
	// These limits are so high that the look-up of a new pod needn't wait behind other requests.
	config.QPS, config.Burst = 50, 100
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.UserAgent = "weir-agent"
	s := &kube.Source{Log: log, Node: node}
	config.Wrap(s.Transport)
	if s.Client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("open the API client: %w", err)
	}
	return s, nil
}

func cleanupCommand() *cobra.Command {
	var conflist string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take weir off this node",
		Long: "Removes weir's links, overlay, rules, sets and guard from the kernel. Pods that still run lose their\n" +
			"network. It refuses to do so while an agent runs.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lock, err := agent.Lock() // a running agent would restore everything
			if err != nil {
				return err
			}
			defer func() { _ = lock.Close() }()
			if err := os.Remove(conflist); conflist != "" && err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove the network configuration: %w", err)
			}
			// The links are removed before the rules, because a pod without its link reaches nothing, even without
			// rules.
			if err := bridge.RemoveAll(); err != nil {
				return err
			}
			links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("open netlink: %w", err)
			}
			defer links.Close()
			if err := errors.Join(overlay.New(links).Remove(), bridge.RemoveGuard(), flowlog.Remove()); err != nil {
				return err
			}
			return errors.Join(removeIptablesAtLast(cmd.Context()), removeNftables(cmd.Context()),
				(&iptables.LegacyForward{}).Remove(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&conflist, "conflist", "",
		"network configuration that run wrote; it is removed first, so that the runtime starts no more pods with weir")
	return cmd
}

// waitCommand is for conf/cleanup.yaml, whose pods stay after the cleanup. With this command, the pods need no image
// but weir's.
func waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait", Short: "Wait until SIGTERM", Hidden: true, Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { <-cmd.Context().Done() },
	}
}
