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
	// publishWait bounds how long an ADD waits until other nodes can know its pod. That takes one answer of the API
	// server, a few milliseconds. Without the wait other nodes may drop the pod's first packet. TCP sends that packet
	// again after a second, so a longer wait would gain nothing.
	publishWait = time.Second
)

// publisher publishes the addresses of enrolled pods to other nodes, before kubelet does. Invariant: addresses are the
// argument of the source's last call of Publish.
type publisher struct {
	addresses map[endpoint.Pod][]netip.Addr
}

// publish publishes the addresses of the enrolled endpoints, if they have changed. It doesn't publish a pod that isn't
// enrolled: the pod may never start, and its address may soon be assigned to another. It publishes only the first
// interface: others, as Multus makes them, are no part of the pod's status.
func (p *publisher) publish(
	ctx context.Context, source Publisher, enrolled map[string]bool, endpoints map[string]endpoint.Endpoint,
) {
	pods := map[endpoint.Pod][]netip.Addr{}
	for _, id := range slices.Sorted(maps.Keys(enrolled)) {
		e := endpoints[id]
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

// awaitPublished waits until other nodes can know the pod. It returns at once if the pod's addresses aren't published.
// It runs beside the loop.
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
