package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/overlay"
)

// Options are the options of an agent. Source, NewBackend, Log and Resync must be set.
type Options struct {
	Source Source
	// NewBackend connects to the kernel's packet filter. Run calls it once, after it has the agent's lock.
	NewBackend func(context.Context) (Backend, error)
	// BackendName is the backend's name for the plugin; empty if the plugin needn't know it.
	BackendName endpoint.Backend
	// RemoveOthers removes the sets and rules of all other backends; nil if there are none.
	RemoveOthers func(context.Context) error
	Log          *slog.Logger
	// HealthAddress is the host:port at which /healthz, /readyz and /metrics are served; if it is empty, they aren't
	// served.
	HealthAddress string
	// Resync is the time from one resync to the next.
	Resync time.Duration
	// EnrolWait is how long an enrolment waits for an unknown pod, or for a fault to end.
	EnrolWait time.Duration
	// NoDrops leaves dropped packets to another program that reads the log group.
	NoDrops bool
	// DropsFile is the path of a file to which dropped packets are written as JSON; empty for none.
	DropsFile string
	// DropEvents is true to make events on pods whose packets were dropped, if the source can make them.
	DropEvents bool
	// Flows is true to record allowed connections all the time. Otherwise the agent does so only when somebody asks for
	// it.
	Flows bool
	Node  NodeOptions
}

// NodeOptions are for an agent with a source that knows the cluster's nodes. Such an agent sets up the tunnel and the
// routes to other nodes' pods, and writes the runtime's network configuration.
type NodeOptions struct {
	// Name is the name of this node's Node object; empty if there are no other nodes.
	Name    string
	Overlay overlay.Options
	// ClusterCIDRs contain all networks of pods. A Node's podCIDR outside of the ClusterCIDRs isn't accepted. If the
	// list is empty, every podCIDR is accepted.
	ClusterCIDRs []netip.Prefix
	// Conflist is the path of the network configuration. The agent writes the file once the kernel has the first
	// state. If the path is empty, the agent writes no network configuration.
	Conflist string
}
