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
	// NewBackend connects to the kernel's packet filter. Run calls it once, after it has taken the agent's lock.
	NewBackend func(context.Context) (Backend, error)
	// BackendName is the backend's name for the plugin. It may be empty.
	BackendName endpoint.Backend
	// RemoveOthers removes the sets and rules of the other backends. It may be nil.
	RemoveOthers func(context.Context) error
	Log          *slog.Logger
	// HealthAddress is the host:port of /healthz, /readyz and /metrics. If it is empty, they aren't served.
	HealthAddress string
	Resync        time.Duration
	// EnrolWait is how long an enrolment waits for an unknown pod, or for the end of a fault.
	EnrolWait time.Duration
	// NoDrops leaves dropped packets to another program.
	NoDrops bool
	// DropsFile is the file to which dropped packets are written as JSON. It may be empty.
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
	// ClusterCIDRs contain all accepted podCIDRs. An empty list accepts every podCIDR.
	ClusterCIDRs []netip.Prefix
	// Conflist is the path of the runtime's network configuration, which the agent writes. It may be empty.
	Conflist string
}
