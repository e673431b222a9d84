// Package agent owns the node's reconciler. From a source of Kubernetes objects and the node's endpoint records it
// computes the kernel's sets, rules and routes, applies them, and answers plugins that ask to enrol a pod.
//
// One goroutine, the loop, does all of this. Other goroutines send the loop events (events.go). After an event that
// leaves work, the loop reconciles (reconcile.go lists the steps). Slow tasks have goroutines of their own. These
// goroutines end the attachments of pods that are gone without a DEL (reap.go), cut connections that a change forbids
// (cut.go), keep the node settings (upkeep.go), report dropped packets (drops.go), and record allowed connections
// (flows.go).
//
// Invariants:
//   - Only the loop's goroutine reads and writes the loop's state, and calls the backend's methods that change
//     something. The loop shares only two kinds of values with other goroutines: values that never change, such as
//     snapshots, and values of types that any goroutine may use, such as drift and metrics.
//   - A plugin hears that its pod is enrolled only after the kernel enforces the policies on the pod. While the
//     kernel, the records or the connections can't be read, no pod is enrolled.
//   - What can't be read is unknown, neither empty nor unchanged: the loop keeps the earlier result and tries again.
//   - A new agent flushes nothing: it takes over the sets, rules and routes of the earlier agent.
//
// The plugin changes the kernel too. It adds a new pod's addresses to the set of all pods, and the pod's senders to the
// guard, so that the pod may send. It removes an ended pod's addresses from all of weir's sets of pods.
package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy/enforced"
	"github.com/weir-net/weir/policy/ruleset"
)

type agent struct {
	Options
	netlink netlinksafe.Handle
	metrics *metrics

	// Any goroutine may use these fields.
	events    chan event
	drift     *drift
	upkeep    upkeep
	reaper    reaper
	snapshots snapshots
	status    atomic.Pointer[status]
	lastRound atomic.Pointer[time.Time] // when the last reconcile began
	explainer explainer
	drops     dropLog
	flows     *flowLog
	// turn is locked while the loop reads or changes the kernel. It is also locked during a trial (a test whether the
	// node supports a backend) if the loop may use that backend, or may remove its rules (see turnOf). So the loop
	// never sees the trial's sets and rules.
	turn sync.Mutex

	// Only the loop's goroutine may use the following fields.
	backend    Backend
	moving     moving
	records    records
	cluster    clusterView
	merger     *ruleset.Merger
	kernel     kernelView
	enrolments enrolments
	links      links
	publisher  publisher
	overlay    overlayView
	cutting    cutting
	conflist   conflist
	heartbeat  heartbeat
	table      tableWatch

	faults   faults
	problems problems
	// oldestChange is when the source reported the oldest change that isn't enforced yet. It is zero if all changes are
	// enforced.
	oldestChange time.Time
	source       sourceReport
	repairs      repairs
	stats        agentapi.Stats
}

// Run runs the agent until ctx ends or a part of the agent fails. It returns the errors of all parts. Sets and
// rules stay in the kernel.
func Run(ctx context.Context, o Options) error {
	lock, err := Lock() // kept until every goroutine that changes the kernel has ended
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	chooser := newChooser(o)
	name, backend, chosen, err := chooser.first(ctx)
	if err != nil {
		return err
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	a := newAgent(o, backend, links)
	defer func() { a.backend.Close() }() // the loop may have replaced the first backend
	if err := a.begin(name, chosen); err != nil {
		return err
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	dir, err := endpoint.WatchDir()
	if err != nil {
		return err
	}
	watcher, err := dirwatch.New(dir)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = watcher.Close() })
	servers, err := a.listen(ctx, lock)
	if err != nil {
		return err
	}
	defer servers.close()

	var parts []func() error
	parts = append(parts,
		func() error { return a.runSource(ctx) },
		func() error { return a.watchRecords(ctx, watcher) },
		func() error { return a.watchRules(ctx) },
		func() error { return a.watchChoice(ctx, chooser, chosen) },
		func() error { return a.loop(ctx) },
		func() error { return a.keepNode(ctx) },
		func() error { return a.reap(ctx) },
		func() error { return a.watchDrops(ctx) },
		func() error { return a.watchFlows(ctx) })
	parts = append(parts, servers.serve...)
	done := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			err := part()
			stop(err) // when one part ends, the others end too
			done <- err
		}()
	}
	<-ctx.Done()
	servers.close()
	var errs []error
	for range parts {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

func newAgent(o Options, backend Backend, links netlinksafe.Handle) *agent {
	a := &agent{
		Options: o, netlink: links,
		events: make(chan event), drift: newDrift(), upkeep: newUpkeep(), reaper: newReaper(),
		records: newRecords(), cluster: newClusterView(o.Node.Name), enrolments: newEnrolments(), links: newLinks(),
		merger: ruleset.NewMerger(ruleset.UsualBounds()), cutting: newCutting(), faults: newFaults(o.Log),
		drops: newDropLog(), flows: newFlowLog(),
	}
	a.snapshots.init()
	a.moving.moved = make(chan struct{}, 1)
	a.use(backend, "")
	a.moving.others = 1
	a.explainer = explainer{
		source: o.Source, backend: &a.moving.present, snapshots: &a.snapshots, status: &a.status, node: o.Node.Name,
		one: make(chan struct{}, 1), sending: make(chan struct{}, 1),
	}
	a.metrics = newMetrics(a.status.Load)
	a.metrics.registry.MustRegister(&positionCollector{now: func() (enforced.Position, bool) {
		at, s, ok, err := a.enforcedNow()
		return at, ok && s.ready && err == nil
	}})
	a.beginRound()
	a.publishStatus()
	return a
}
