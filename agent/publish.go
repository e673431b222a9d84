package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/endpoint"
)

const (
	// kubelet reports this interface's addresses as the pod's addresses (defaultIfName of containerd's CRI plugin).
	podInterface = "eth0"
	// publishWait bounds how long an ADD waits for the publication. If the ADD didn't wait, other nodes might drop the
	// pod's first packet. TCP would send the packet again only after a second.
	publishWait = time.Second
)

// publisher publishes the addresses of enrolled pods to other nodes, earlier than kubelet does.
type publisher struct {
	addresses map[endpoint.Pod][]netip.Addr
	records   *recordsCopy
	enrolled  map[string]bool
}

// publish publishes the addresses of enrolled pods' eth0, the only interface that kubelet reports. A pod that isn't
// enrolled may never start, so its addresses are not published.
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

func (a *agent) awaitPublished(ctx context.Context, e *enrolment) {
	source, ok := a.Source.(Publisher)
	_, ifName := endpoint.PartsOfID(e.id)
	if !ok || e.pod.UID == "" || ifName != podInterface {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	source.AwaitPublished(ctx, e.pod)
}
