package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy/report"
	"github.com/weir-net/weir/policy/ruleset"
)

const (
	// settle is how long after the kernel has told of a change the node is looked at: what one command changes comes in
	// several messages, and an ADD or a DEL brings a dozen.
	settle = 50 * time.Millisecond
	// betweenLooks is the least time from one look to the next, however much the kernel tells.
	betweenLooks = 500 * time.Millisecond
	// namedRepairs is how many things of one kind are named that were put right at once.
	namedRepairs = 5
	// keptRepairs is how many repairs the status tells of.
	keptRepairs = 10
)

// upkeep keeps what weir sets up on the node outside of the packet filter (bridge.Properties). It is beside the loop,
// so that no pod's start waits for it.
type upkeep struct {
	known   atomic.Pointer[nodeKnowledge] // by the loop
	changed chan struct{}                 // holds one: the node may have changed, or what is known
	ways    atomic.Bool                   // the way to other nodes' pods may have changed
	mac     net.HardwareAddr              // that weir0 was last seen with
}

// nodeKnowledge is what the loop knows of that goes into the node's properties.
type nodeKnowledge struct {
	endpoints map[string]endpoint.Endpoint
	classes   []ruleset.Class // as they are enforced
	tunnels   []conf.Family
}

// judged are the pods whose policies are enforced.
func (k *nodeKnowledge) judged() map[string]bool {
	all := map[string]bool{}
	for _, c := range k.classes {
		for _, pod := range c.Pods {
			all[pod] = true
		}
	}
	return all
}

// tellUpkeep says what the loop knows now, and has brought into the kernel.
func (a *agent) tellUpkeep() {
	if !a.listed {
		return
	}
	k := &nodeKnowledge{endpoints: maps.Clone(a.endpoints), classes: a.ruleset.Classes}
	for _, gw := range a.ways.plan.Gateways {
		k.tunnels = append(k.tunnels, conf.FamilyOf(gw))
	}
	before := a.upkeep.known.Swap(k)
	if before == nil || len(before.endpoints) == 0 {
		a.upkeep.notice() // nobody has looked at the node since its first pod came
	}
}

// notice has the node be looked at soon. It doesn't wait.
func (u *upkeep) notice() {
	select {
	case u.changed <- struct{}{}:
	default: // it will be looked at anyway
	}
}

// keepNode looks at the node at each resync, and when the kernel tells of a change.
func (a *agent) keepNode(ctx context.Context) error {
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE) // of its own: the loop shan't wait for a list
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	// These the agent sets up itself, before any pod comes. What fails the first look reports.
	_ = errors.Join(bridge.SetReassembly(), bridge.RemoveAutoconfigured(links))
	watching := make(chan error, 1)
	go func() {
		watching <- bridge.WatchNode(ctx, func(ways bool) {
			if ways {
				a.upkeep.ways.Store(true)
			}
			a.upkeep.notice()
		})
	}()
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	var soon <-chan time.Time
	var last time.Time
	for {
		select {
		case err := <-watching: // as it does when ctx ends
			return err
		case <-a.upkeep.changed:
			if soon == nil {
				soon = time.After(max(settle, betweenLooks-time.Since(last)))
			}
			continue
		case <-soon:
		case <-resync.C:
		}
		soon, last = nil, time.Now()
		if k := a.upkeep.known.Load(); k != nil {
			if a.upkeep.ways.Load() { // which the loop takes back
				a.hand(ctx, func() iptables.Verify { return iptables.Trust })
			}
			a.hand(ctx, a.takeUpkeep(a.upkeep.look(links, k)))
		}
	}
}

// look repairs what isn't as it should be. Most looks find nothing, and hold up nobody.
func (u *upkeep) look(links netlinksafe.Handle, k *nodeKnowledge) (found []bridge.Difference, err error) {
	memory, err := bridge.NodeMemory()
	if err != nil {
		return nil, err
	}
	properties := u.properties(k, memory, slices.Collect(maps.Values(k.endpoints)))
	o := bridge.Observe(links)
	if len(bridge.Compare(properties, o)) == 0 {
		if l, ok := o.Links[bridge.Name]; ok {
			u.mac = l.MAC
		}
		return nil, nil
	}
	// Under the lock no attachment is begun, and none is freed: what differs by then isn't one on its way.
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	records, err := endpoint.List()
	if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) { // which are reported elsewhere
		return nil, err
	}
	return bridge.Repair(links, u.properties(k, memory, records)), nil
}

// properties of the node with these attachments, of which those are left out that an ADD is still making.
func (u *upkeep) properties(k *nodeKnowledge, memory uint64, records []endpoint.Endpoint) []bridge.Property {
	judged := k.judged()
	known := bridge.Knowledge{Memory: memory, MAC: u.mac, Tunnels: k.tunnels}
	slices.SortFunc(records, func(a, b endpoint.Endpoint) int { return a.Created.Compare(b.Created) })
	for _, e := range records {
		if e.BridgeIf != "" && !slices.Contains(known.Filtered, e.BridgeIf) {
			known.Filtered = append(known.Filtered, e.BridgeIf)
		}
		pod, ok := bridge.PodOf(e)
		if busy, err := endpoint.Busy(e.ID()); !ok || busy || err != nil {
			continue
		}
		pod.Up = judged[e.Pod.String()]
		known.Pods = append(known.Pods, pod)
	}
	return bridge.Properties(known)
}

// takeUpkeep counts and tells of what was found.
func (a *agent) takeUpkeep(found []bridge.Difference, err error) event {
	return func() iptables.Verify {
		errs := []error{err}
		failed, repaired := map[bridge.Kind]int{}, map[bridge.Kind][]repair{}
		for _, d := range found {
			kind := d.Property.Kind()
			if d.Failed == nil {
				repaired[kind] = append(repaired[kind], repair{d.Was.Error(), d.Property.Command()})
				continue
			}
			errs = append(errs, d)
			failed[kind]++
		}
		for _, kind := range slices.Sorted(maps.Keys(repaired)) {
			a.noteRepair(kind, repaired[kind])
		}
		a.nodeFaults = failed
		a.faults.set(partNode, errors.Join(errs...))
		a.publish()
		return none
	}
}

// repair is one thing that was put right: how it was found, and the command that does the same.
type repair struct{ was, command string }

// noteRepair counts what of the kind was put right, and says how it was found.
func (a *agent) noteRepair(kind bridge.Kind, repaired []repair) {
	if len(repaired) == 0 {
		return
	}
	a.metrics.nodeRepairs.WithLabelValues(string(kind)).Add(float64(len(repaired)))
	a.stats.NodeRepairs += len(repaired)
	var was []string
	for _, d := range repaired[:min(len(repaired), namedRepairs)] {
		was = append(was, d.was)
	}
	if more := len(repaired) - namedRepairs; more > 0 {
		was = append(was, fmt.Sprintf("and %d more", more))
	}
	r := report.NodeRepair{
		Time: time.Now(), What: string(kind), Count: len(repaired), Was: strings.Join(was, ", "), Command: repaired[0].command,
	}
	a.nodeRepairs = append(a.nodeRepairs, r)
	a.nodeRepairs = a.nodeRepairs[max(0, len(a.nodeRepairs)-keptRepairs):]
	a.Log.Warn("somebody had changed what weir sets up on the node; it is as it should be again", "what", r.What, "count", r.Count,
		"was", r.Was, "command", r.Command)
}
