package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
)

const (
	// reapEvery is how often the node is searched for attachments that are over, in case no message told of one.
	reapEvery = time.Minute
	// reapAfter is how long after a pod's link has gone the node is searched. Nearly always DEL has deleted the link and
	// has done the rest by then, for this pod and for others that end at the same time.
	reapAfter = time.Second
)

// reaper ends attachments whose pods are gone.
type reaper struct {
	// strays are addresses in the sets of all pods that are assigned to no pod. It has room for one list.
	strays chan []netip.Addr
}

func newReaper() reaper { return reaper{make(chan []netip.Addr, 1)} }

// offer gives the reaper strays to evict. It doesn't wait: what the reaper doesn't take, the next look at the kernel
// finds again.
func (r *reaper) offer(strays []netip.Addr) {
	if len(strays) == 0 {
		return
	}
	select {
	case r.strays <- strays:
	default:
	}
}

// reap ends attachments whose pods' namespaces are gone without a DEL, and finishes DELs that were killed: containerd
// never calls GC. It is apart from the loop, since it waits for the plugin's lock. The loop learns of it from the
// records, as of any DEL. A DEL that comes later finds nothing to do.
func (a *agent) reap(ctx context.Context) error {
	gone := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- bridge.WatchPorts(ctx, func() {
			select {
			case gone <- struct{}{}:
			default: // the node will be searched anyway
			}
		})
	}()
	every := time.NewTicker(reapEvery)
	defer every.Stop()
	soon := time.After(0) // what ended while there was no agent
	for {
		select {
		case err := <-watching: // as it does when ctx ends
			return err
		case <-gone:
			if soon == nil {
				soon = time.After(reapAfter)
			}
			continue
		case <-soon:
			soon = nil
		case <-every.C:
		case strays := <-a.reaper.strays:
			a.evict(ctx, strays)
			continue
		}
		a.reapOnce()
	}
}

// reapOnce ends the attachments that are over now.
func (a *agent) reapOnce() {
	ended, err := attachment.NewNode().Reap()
	for _, e := range ended {
		a.metrics.reaped.Inc()
		a.Log.Info("an attachment was removed: its pod's namespace is gone, or its DEL had stopped halfway",
			"pod", e.Pod.String(), "container", e.ContainerID, "link", e.HostIf)
	}
	if err != nil {
		a.Log.Error("attachments of pods that are gone can't be removed; the agent tries again", "error", err)
	}
}

// evict removes addresses that another program added from the sets of all pods.
func (a *agent) evict(ctx context.Context, strays []netip.Addr) {
	evicted, err := attachment.NewNode().Evict(strays)
	if err != nil {
		a.Log.Error("addresses of no pod can't be removed from the sets of all pods; the agent tries again", "error", err)
	}
	if len(evicted) == 0 {
		return
	}
	a.Log.Warn("another program added addresses of no pod to the sets of all pods; weir has removed them",
		"addresses", evicted)
	a.send(ctx, straysEvicted{})
}
