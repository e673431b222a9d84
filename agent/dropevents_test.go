package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
)

type podAnnouncer struct {
	Source
	events chan agentapi.PodEvent
}

func (p podAnnouncer) AnnounceOnPod(_ context.Context, e agentapi.PodEvent) error {
	p.events <- e
	return errors.New("the server is away")
}

// TestDropEvents: with --drop-events, a dropped packet of this node's pod makes an event on the pod.
func TestDropEvents(t *testing.T) {
	source := podAnnouncer{Source: newCluster(), events: make(chan agentapi.PodEvent, 10)}
	for _, on := range []bool{false, true} {
		o := Options{Source: source, DropEvents: on, Log: slog.New(slog.DiscardHandler)}
		a := newAgent(o, &iptables.Driver{}, netlinksafe.Handle{})
		e := a.newDropEvents()
		if (e.to != nil) != on {
			t.Fatalf("--drop-events=%v: events are made: %v", on, e.to != nil)
		}
		s := &snapshot{endpoints: []policy.Endpoint{{Pod: policy.PodRef{Namespace: "shop", Name: "db", UID: "7"}}}}
		drop := func(pod string) drops.Entry {
			return drops.Entry{Drop: &agentapi.Drop{
				Kind: agentapi.DropShown, Time: time.Unix(1000, 0), Count: 3, Direction: "ingress", Reason: agentapi.ByPolicy,
				Destination: agentapi.DropEnd{Pod: pod, Address: netip.MustParseAddr("10.0.0.2"), Port: 80},
			}}
		}
		e.report([]drops.Entry{drop("shop/elsewhere"), drop("shop/db"), drop("shop/db")}, s)
		if !on {
			continue
		}
		go a.sendDropEvents(t.Context(), e)
		got := receive(t, source.events)
		if got.Pod.UID != "7" || got.Reason != "PacketsDropped" || got.Count != 3 || len(e.queue) > 0 {
			t.Errorf("%+v, and %d more", got, len(e.queue))
		}
	}
}
