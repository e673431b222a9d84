package agent

import (
	"context"
	"net/netip"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
)

// Source gives the agent the cluster's objects. A source may also implement Lookup, Publisher, Contact, Files,
// Announcer, PodAnnouncer, Positioner and Viewer. The agent asks for each by type assertion.
type Source interface {
	// Run calls update with each change of the objects until ctx ends. A nil delta means that no object has changed.
	// The first other delta means that there is a usable state. The error says what is wrong with the newest state.
	// If Run returns, the agent ends.
	Run(ctx context.Context, update func(*policy.Delta, error)) error
}

// Lookup is a Source that can be asked for one pod.
type Lookup interface {
	// Lookup returns the pod of that namespace and name. ok is false if there is no such pod.
	Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error)
}

// Publisher is a Source that can publish the addresses of this node's pods to other nodes.
type Publisher interface {
	// Publish replaces the published addresses of this node's pods. It doesn't wait.
	Publish(ctx context.Context, pods map[endpoint.Pod][]netip.Addr)
	// AwaitPublished waits until other nodes can know the pod's addresses, or until ctx ends. The agent has called
	// Publish with the pod, or is about to.
	AwaitPublished(ctx context.Context, pod endpoint.Pod)
}

// Contact is a Source that knows whether its server answers.
type Contact interface {
	// Contact returns the reason why the server doesn't answer; nil if it answers.
	Contact() error
}

// Files is a Source that reads files, and knows the result for each.
type Files interface {
	// Files returns the files and the result of reading each. It may be called at any time. Callers don't change the
	// result.
	Files() []agentapi.File
}

// Announcer is a Source that can show an event on this node's Node object.
type Announcer interface {
	// Announce makes a warning event with the reason (CamelCase) and the message. It doesn't wait.
	Announce(ctx context.Context, reason, message string)
}

// PodAnnouncer is a Source that can show events on pods.
type PodAnnouncer interface {
	// AnnounceOnPod makes the event. If an earlier event has the same key, it counts in that one's object instead.
	// It waits for the server, but not for long. It is for one goroutine.
	AnnounceOnPod(ctx context.Context, e agentapi.PodEvent) error
}

// Positioner is a Source that numbers its deltas, and knows how far its watches have come.
type Positioner interface {
	// Position returns how far the watches have come, and the number of a delta. All changes up to there are in this
	// delta and those before it. ok is false if that isn't known. It may be called at any time, beside Run.
	Position() (at enforced.Position, delta uint64, ok bool)
}

// Viewer is a Source that can show its objects at any time.
type Viewer interface {
	// View returns the present objects and Services. Of the pods, it returns only those for which keep returns true.
	// It may be called at any time, beside Run. Callers don't change the results.
	View(ctx context.Context, keep func(*policy.Pod) bool) (policy.Objects, []policy.Service, error)
}
