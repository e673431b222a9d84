package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weir-net/weir/overlay"
)

// Options of an agent.
type Options struct {
	Source Source
	// NewBackend connects to the kernel's packet filter. Run calls it once, when no other agent runs.
	NewBackend func(context.Context) (Backend, error)
	Log        *slog.Logger
	// HealthAddress is where /healthz, /readyz and /metrics are served, host:port; empty: nowhere.
	HealthAddress string
	// Resync is how often the kernel is read and repaired if nothing else happens.
	Resync time.Duration
	// EnrolWait is how long an enrolment waits for a pod that the source doesn't know yet.
	EnrolWait time.Duration
	Node      NodeOptions
}

// NodeOptions are for an agent whose source knows the cluster's nodes: it then keeps the ways to other nodes' pods, and
// writes the runtime's network configuration.
type NodeOptions struct {
	// Name of this node's Node object; empty: there are no other nodes.
	Name    string
	Overlay overlay.Options
	// ClusterCIDRs, if there are any, contain all networks of pods: a Node's podCIDR outside of them isn't accepted.
	ClusterCIDRs []netip.Prefix
	// Conflist is the path that the network configuration is written to, once the first state is in the kernel; empty:
	// the agent writes none.
	Conflist string
}
