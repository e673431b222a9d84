package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/overlay"
)

// Options are the options of an agent. Source, Backends, Log and Resync must be set.
type Options struct {
	Source Source
	// Backends are the backends that the agent may use. If there is only one, its name may be empty: then the agent
	// tells the plugin no name.
	Backends []BackendKind
	// Backend is the backend to use. If it is empty, the agent chooses one.
	Backend conf.Backend
	// SettleChoice is how long another backend must have been the choice before the agent moves to it. After the same
	// time, the agent repeats a failed move or trial.
	SettleChoice time.Duration
	Log          *slog.Logger
	// HealthAddress is the host:port of /healthz, /readyz and /metrics. If it is empty, the agent doesn't serve these.
	HealthAddress string
	Resync        time.Duration
	// EnrolWait is how long an enrolment waits for an unknown pod, or for the end of a fault.
	EnrolWait time.Duration
	// NoDrops means that the agent doesn't read dropped packets, so another program can read them.
	NoDrops bool
	// DropsFile is the file to which dropped packets are written as JSON. If it is empty, they are written nowhere.
	DropsFile string
	// DropEvents makes Event objects for pods with dropped packets.
	DropEvents bool
	// Flows records allowed connections all the time. Otherwise they are recorded on demand.
	Flows bool
	Node  NodeOptions
}

// NodeOptions are for a source that knows the cluster's nodes.
type NodeOptions struct {
	// Name is the name of this node's Node object. It is empty if there are no other nodes.
	Name    string
	Overlay overlay.Options
	// ClusterCIDRs limit the podCIDRs: only podCIDRs within them are accepted. An empty list accepts every podCIDR.
	ClusterCIDRs []netip.Prefix
	// Conflist is the path of the runtime's network configuration, which the agent writes. If the path is empty, the
	// agent writes no configuration.
	Conflist string
}

// BackendKind is a backend that the agent may use. If it is the only one, only New must be set.
type BackendKind struct {
	Name conf.Backend
	// New connects to the kernel's packet filter. It changes nothing.
	New func(context.Context) (Backend, error)
	// Remove removes the backend's sets and rules from the kernel.
	Remove func(context.Context) error
	// Lacks tries the features that the backend needs, and returns the features that the node lacks; nil if the backend
	// works. An error says that the trial has left a thread in another network namespace. lacks is complete even then.
	Lacks func(context.Context) (lacks []string, err error)
	// KubeProxy reports whether kube-proxy has rules of this kind (iptables or nftables).
	KubeProxy func() (bool, error)
}
