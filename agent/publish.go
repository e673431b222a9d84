package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/endpoint"
)

const (
	// podInterface is the interface with the addresses that kubelet reports as the pod's (defaultIfName of containerd's
	// CRI plugin).
	podInterface = "eth0"
	// publishWait bounds how long an ADD waits until other nodes can know its pod. Without the wait, they may drop
	// the pod's first packet, and TCP repeats it after a second.
	publishWait = time.Second
)

// publisher publishes the addresses of enrolled pods to other nodes, before kubelet does. Invariant: addresses are
// those of the last call of Publish.
type publisher struct {
	addresses map[endpoint.Pod][]netip.Addr
	// records and enrolled are what addresses was computed from.
	records  *recordsCopy
	enrolled map[string]bool
}

// publish publishes the addresses of enrolled endpoints, if they have changed. A pod that isn't enrolled may never
// start, and another pod may get its address. Only eth0 counts: kubelet reports no addresses of other interfaces.
func (p *publisher) publish(
	ctx context.Context, source Publisher, enrolled map[string]bool, records *recordsCopy,
) {
	if p.records == records && maps.Equal(p.enrolled, enrolled) {
		return
	}
	p.records, p.enrolled = records, maps.Clone(enrolled)
	pods := map[endpoint.Pod][]netip.Addr{}
	for _, id := range slices.Sorted(maps.Keys(enrolled)) {
		e := records.endpoints[id]
		if e.IfName != podInterface {
			continue
		}
		for _, addr := range e.Addresses {
			pods[e.Pod] = append(pods[e.Pod], addr.Addr)
		}
	}
	if !maps.EqualFunc(pods, p.addresses, slices.Equal) {
		p.addresses = pods
		source.Publish(ctx, pods)
	}
}

// awaitPublished waits until other nodes can know the pod, but at most publishWait. The goroutine of the plugin's
// request calls it, so the loop doesn't wait.
func (a *agent) awaitPublished(ctx context.Context, e *enrolment) {
	source, ok := a.Source.(Publisher)
	_, ifName, _ := strings.Cut(e.id, ":")
	if !ok || e.pod.UID == "" || ifName != podInterface {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	source.AwaitPublished(ctx, e.pod)
}
