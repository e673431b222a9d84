package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
)

const (
	reapEvery = time.Minute
	// reapAfter is the wait from the deletion of a pod's link to the search for leftovers. Nearly always a DEL
	// deletes the link, and has finished by then.
	reapAfter = time.Second
)

type reaper struct {
	// strays has addresses that are in weir-pods, the sets of all pods, but belong to no attachment.
	strays chan []netip.Addr
	failed string // the text of the last eviction's error, so an error that lasts is logged once
}

func newReaper() reaper { return reaper{strays: make(chan []netip.Addr, 1), failed: fmt.Sprint(nil)} }

func (r *reaper) offer(strays []netip.Addr) {
	if len(strays) == 0 {
		return
	}
	select {
	case r.strays <- strays:
	default:
	}
}

// reap ends the attachments of pods that are gone without a DEL. The CNI command GC would do this too, but containerd
// never calls it.
func (a *agent) reap(ctx context.Context) error {
	gone := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- bridge.WatchPorts(ctx, func() {
			select {
			case gone <- struct{}{}:
			default: // a message waits in gone already, so the node will be searched
			}
		})
	}()
	every := time.NewTicker(reapEvery)
	defer every.Stop()
	soon := time.After(0) // some attachments may have ended while no agent ran
	for {
		select {
		case err := <-watching: // the watch has failed, or ctx has ended
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

func (a *agent) evict(ctx context.Context, strays []netip.Addr) {
	evicted, err := attachment.NewNode().Evict(strays)
	if text := fmt.Sprint(err); text != a.reaper.failed {
		if a.reaper.failed = text; err != nil {
			a.Log.Error("addresses that belong to no pod can't be removed from the sets of all pods; the agent tries again",
				"error", err)
		}
	}
	if len(evicted) == 0 {
		return
	}
	a.Log.Warn("the sets of all pods had addresses that belong to no pod: another program added them, or pods ended "+
		"while the agent moved to another backend; weir has removed the addresses", "addresses", evicted)
	a.send(ctx, straysEvicted{})
}
