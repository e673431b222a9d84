package agent

import (
	"context"
	"net/netip"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
)

// Source gives the agent the cluster's objects. A Source may also implement further interfaces of this file, such as
// Lookup.
type Source interface {
	// Run passes each change of the objects to the function update until ctx ends. The first delta that isn't nil means
	// that the source has a usable state. The error describes the faults of the newest state. If Run returns, the agent
	// ends.
	Run(ctx context.Context, update func(*policy.Delta, error)) error
}

// Lookup is a Source that can be asked for one pod.
type Lookup interface {
	// Lookup returns the pod of that namespace and name, whatever its UID. ok is false if there is no such pod.
	Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error)
}

// Publisher is a Source that publishes the addresses of this node's pods to other nodes.
type Publisher interface {
	// Publish replaces the published addresses. It doesn't wait.
	Publish(ctx context.Context, pods map[endpoint.Pod][]netip.Addr)
	// AwaitPublished waits until other nodes can know the pod's addresses, or until ctx ends.
	AwaitPublished(ctx context.Context, pod endpoint.Pod)
}

// Contact is a Source that knows whether its server answers.
type Contact interface {
	// Contact returns why the server's answers aren't complete, or nil if they are complete.
	Contact() error
}

// Files is a Source that reads the objects from files (see package manifests).
type Files interface {
	// Files returns each file with the states of its objects (agentapi.FileState). Any goroutine may call it. The
	// caller must not change the result.
	Files() []agentapi.File
}

// Announcer is a Source that makes Event objects for this node's Node object.
type Announcer interface {
	// Announce makes a warning event, without waiting for the server. The reason is in CamelCase.
	Announce(ctx context.Context, reason, message string)
}

// PodAnnouncer is a Source that makes Event objects for this node's pods, for example about dropped packets.
type PodAnnouncer interface {
	// AnnounceOnPod makes the event, or counts it in an earlier event with the same key. It waits a short time for the
	// server. Only one goroutine may call it.
	AnnounceOnPod(ctx context.Context, e agentapi.PodEvent) error
}

// Positioner is a Source that numbers its deltas and knows how far its watches have come.
type Positioner interface {
	// Position returns the position of the watches, and the number of the delta with the last change up to this
	// position. ok is false if the position isn't known. Any goroutine may call it.
	Position() (at enforced.Position, delta uint64, ok bool)
}

// Viewer is a Source that can show its objects at any time.
type Viewer interface {
	// View returns the present objects and Services. It leaves out pods for which the function keep returns false. Any
	// goroutine may call it. The caller must not change the results.
	View(ctx context.Context, keep func(*policy.Pod) bool) (policy.Objects, []policy.Service, error)
}
