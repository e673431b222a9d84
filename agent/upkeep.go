package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/ruleset"
)

const (
	// settle is how long upkeep waits after the first message about a change, before it checks the node. One command
	// causes a dozen messages.
	settle        = 50 * time.Millisecond
	betweenChecks = 500 * time.Millisecond
)

// upkeep keeps the node settings (bridge.Properties), beside the loop.
type upkeep struct {
	known   atomic.Pointer[nodeKnowledge] // stored by the loop
	changed chan struct{}                 // a message means that the node or known may have changed
	overlay atomic.Bool                   // weir's tunnel and routes to other nodes may have changed
	// underlay means that the paths to other nodes may have changed. The next resync looks at them.
	underlay atomic.Bool
	heard    atomic.Uint64 // how often the kernel has announced a change
	// Only check's goroutine uses the following fields.
	mac  net.HardwareAddr // the MAC of weir0, as check last saw it
	adds adds
	seen seenNode
}

// seenNode is an observation of the node in which all settings were right.
type seenNode struct {
	*bridge.Observed // nil if the node must be observed again
	at               time.Time
	heard            uint64 // the value of upkeep.heard before the observation
}

// observeEvery is how often the node is observed even if the kernel has announced no change. The kernel doesn't
// announce changes of the MTUs of veth pairs' ends in pods. It doesn't announce changes of most sysctls either, but
// each check reads the sysctls.
const observeEvery = time.Minute

func newUpkeep() upkeep { return upkeep{changed: make(chan struct{}, 1)} }

type nodeKnowledge struct {
	endpoints map[string]endpoint.Endpoint
	classes   []ruleset.Class // the classes of the enforced snapshot
	up        map[string]bool // a copy of links.done: the links that needn't be brought up any more
	tunnels   []conf.Family
}

func (k *nodeKnowledge) enrolled() map[string]bool {
	all := map[string]bool{}
	for _, c := range k.classes {
		for _, pod := range c.Pods {
			all[pod] = true
		}
	}
	return all
}

func (a *agent) tellUpkeep() {
	if !a.records.complete {
		return
	}
	k := &nodeKnowledge{
		endpoints: a.records.copies().endpoints, classes: a.snapshots.enforced.Load().ruleset.Classes,
		up: maps.Clone(a.links.done),
	}
	for _, gw := range a.overlay.plan.Gateways {
		k.tunnels = append(k.tunnels, conf.FamilyOf(gw))
	}
	before := a.upkeep.known.Swap(k)
	if before == nil || len(before.endpoints) == 0 {
		a.upkeep.notify() // the node may have its first pod, and hasn't been checked since
	}
}

func (u *upkeep) notify() {
	select {
	case u.changed <- struct{}{}:
	default: // a check is due already
	}
}

// hear records what the kernel has announced. It asks for a check of the node if node settings, or weir's tunnel and
// routes to other nodes, may have changed.
func (u *upkeep) hear(n bridge.News) {
	u.heard.Add(1)
	if n.Overlay {
		u.overlay.Store(true)
	}
	if n.Underlay {
		u.underlay.Store(true)
	}
	if n.Settings || n.Overlay {
		u.notify()
	}
}

func (a *agent) keepNode(ctx context.Context) error {
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE) // its own handle, so keepNode doesn't wait for the loop
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	// The first check comes only after the loop has read the records. These settings don't depend on records, so they
	// are made now. If that fails, the first check reports it.
	_ = errors.Join(bridge.SetReassembly(), bridge.RemoveAutoconfigured(links))
	watching := make(chan error, 1)
	go func() {
		watching <- bridge.WatchNode(ctx, a.upkeep.hear)
	}()
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	var soon <-chan time.Time
	var last time.Time
	for {
		select {
		case err := <-watching: // the watch has failed, or ctx has ended
			return err
		case <-a.upkeep.changed:
			if soon == nil {
				soon = time.After(max(settle, betweenChecks-time.Since(last)))
			}
			continue
		case <-soon:
		case <-resync.C:
		}
		soon, last = nil, time.Now()
		if k := a.upkeep.known.Load(); k != nil {
			if a.upkeep.overlay.Load() { // the loop sets overlay to false when it reads the news
				a.send(ctx, overlayChanged{})
			}
			differences, err := a.upkeep.check(links, k)
			a.send(ctx, nodeChecked{differences, err})
		}
	}
}

// check compares and repairs the node settings. If nothing differs, it doesn't take the node's lock.
func (u *upkeep) check(links netlinksafe.Handle, k *nodeKnowledge) ([]bridge.Difference, error) {
	memory, err := bridge.NodeMemory()
	if err != nil {
		return nil, err
	}
	u.adds.forget(len(k.endpoints))
	properties := u.properties(k, memory, slices.Collect(maps.Values(k.endpoints)), u.adds.run)
	now := u.observe()
	defer now.Close()
	if len(bridge.Compare(properties, now.Observed)) == 0 {
		if l, ok := now.Links[bridge.Name]; ok {
			u.mac = l.MAC
		}
		if u.seen = now; !now.Lasts() {
			u.seen = seenNode{}
		}
		return nil, nil
	}
	u.seen = seenNode{}
	// Under the lock no attachment begins, so no difference comes from a running ADD.
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	records, err := endpoint.List()
	if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) { // takeRecords reports broken records
		return nil, err
	}
	return u.withoutEnding(bridge.Repair(links, u.properties(k, memory, records, isBusy)), k, memory, records)
}

// observe observes the node. While the kernel announces no change, it returns the last observation again, for up to
// observeEvery.
func (u *upkeep) observe() seenNode {
	heard := u.heard.Load() // 0 until WatchNode receives the kernel's messages
	if u.seen.Observed != nil && heard != 0 && heard == u.seen.heard && time.Since(u.seen.at) < observeEvery {
		return u.seen
	}
	return seenNode{bridge.Observe(), time.Now(), heard}
}

func isBusy(e endpoint.Endpoint) bool {
	busy, err := endpoint.Busy(e.ID())
	return busy || err != nil
}

// withoutEnding leaves out repairs for ending attachments. A DEL removes neighbour entries without the node's lock,
// so Repair may have restored them: withoutEnding removes them again. The caller must have had the lock since it
// listed the records.
func (u *upkeep) withoutEnding(
	found []bridge.Difference, k *nodeKnowledge, memory uint64, records []endpoint.Endpoint,
) ([]bridge.Difference, error) {
	if len(found) == 0 {
		return nil, nil
	}
	var errs []error
	var staying []endpoint.Endpoint
	for _, e := range records {
		_, ending, err := endpoint.LoadAny(e.ID())
		switch {
		case err != nil: // unexpected: the record could be read a moment ago
			errs = append(errs, err)
		case !ending:
			staying = append(staying, e)
		case !e.Chained: // another plugin's pods have no neighbour entries on weir0
			errs = append(errs, bridge.RemoveNeighbours(e.Addresses))
		}
	}
	if len(staying) == len(records) {
		return found, nil
	}
	wanted := map[string]bool{}
	for _, p := range u.properties(k, memory, staying, isBusy) {
		wanted[p.Command()] = true
	}
	found = slices.DeleteFunc(found, func(d bridge.Difference) bool { return !wanted[d.Property.Command()] })
	return found, errors.Join(errs...)
}

// properties returns the wanted node settings. It leaves out pods for which the function busy returns true.
func (u *upkeep) properties(
	k *nodeKnowledge, memory uint64, records []endpoint.Endpoint, busy func(endpoint.Endpoint) bool,
) []bridge.Property {
	enrolled := k.enrolled()
	known := bridge.Knowledge{Memory: memory, MAC: u.mac, Tunnels: k.tunnels}
	slices.SortFunc(records, func(a, b endpoint.Endpoint) int { return a.Created.Compare(b.Created) })
	for _, e := range records {
		if e.BridgeIf != "" && !slices.Contains(known.Filtered, e.BridgeIf) {
			known.Filtered = append(known.Filtered, e.BridgeIf)
		}
		if bridge.NeedsNoIPv6(e) {
			known.NoIPv6 = append(known.NoIPv6, bridge.Peer{Name: e.HostIf, Index: e.HostIndex})
		}
		pod, ok := bridge.PodOf(e)
		if !ok || busy(e) {
			continue
		}
		// bringUpLinks decides when the links of pods with enforcement "closed" come up.
		pod.Up = enrolled[e.Pod.String()] && (e.Enforcement != conf.Closed || k.up[e.ID()])
		known.Pods = append(known.Pods, pod)
	}
	return bridge.Properties(known)
}

func (a *agent) takeNodeCheck(differences []bridge.Difference, err error) {
	errs := []error{err}
	failures, repaired := map[bridge.Kind]int{}, map[bridge.Kind][]repair{}
	for _, d := range differences {
		kind := d.Property.Kind()
		if d.Failed == nil {
			repaired[kind] = append(repaired[kind], repair{d.Was.Error(), d.Property.Command()})
			continue
		}
		errs = append(errs, d)
		failures[kind]++
	}
	for _, kind := range slices.Sorted(maps.Keys(repaired)) {
		a.countRepairs(kind, repaired[kind])
	}
	a.repairs.failures = failures
	a.faults.set(partNode, errors.Join(errs...))
	a.publishStatus()
}
