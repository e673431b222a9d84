// Package agent owns the node's reconciler: from a source of Kubernetes objects and the node's endpoint records it
// computes what should be in the kernel, brings it there, and answers the plugin that asks to enrol a new pod. One
// goroutine does all of that, in the order in which things come in. Of weir's, only the plugin changes the kernel too: it
// puts a new pod's addresses into the set of all pods, takes those of one that goes out of all sets, and lets its port
// through the spoof guard. A second goroutine does the same as the plugin's DEL for pods that nobody deletes, a third
// ends connections that a change forbids, and a fourth keeps what weir sets up on the node outside of the packet
// filter.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/report"
	"github.com/weir-net/weir/policy/ruleset"
)

// Source tells what the cluster looks like.
type Source interface {
	// Run calls update with each new state of the objects until ctx ends. Objects are nil while there was no good state
	// yet; the error says what is wrong with the newest one. Run's own error ends the agent.
	Run(ctx context.Context, update func(*policy.Objects, error)) error
}

// Options of an agent.
type Options struct {
	Source Source
	Log    *slog.Logger
	// HealthAddress is where /healthz and /readyz are answered, host:port.
	HealthAddress string
	// Resync is how often the kernel is read and repaired if nothing else happens.
	Resync time.Duration
	// EnrolWait is how long a pod that the source doesn't know yet is waited for.
	EnrolWait time.Duration
	Node      NodeOptions
}

type agent struct {
	Options
	driver *iptables.Driver
	links  netlinksafe.Handle

	events chan event
	drift  *drift
	upkeep upkeep

	// The rest belongs to the loop's goroutine.
	told      *policy.Objects  // by the source
	found     map[string]found // pods that it hasn't told of yet, by endpoint
	objects   *policy.Objects  // both
	parsed    *policy.Parsed   // its policies
	policies  []string         // their names
	endpoints map[string]endpoint.Endpoint
	broken    endpoint.BrokenRecords
	shut      map[string]endpoint.Endpoint // what can be known of those whose records are broken
	listed    bool                         // the records were read once
	unlisted  bool                         // and couldn't be when they were to be read again
	opened    map[string]bool              // endpoints with enforcement "closed" whose links the agent has brought up
	enrolled  map[string]bool              // endpoints that were let in
	published map[endpoint.Pod][]netip.Addr
	kept      bool            // while there are no objects: the kernel was looked at
	ruleset   ruleset.Ruleset // as it was last brought into the kernel
	purged    bool            // the plugin has changed sets since
	refused   ruleset.Refused // by the kernel, since the last resync
	moved     bool            // attachments have begun or ended since the kernel was read last
	ending    bool            // attachments are being deleted
	owed      iptables.Verify // what must be read for the next sync, as the last one failed
	cleaned   bool            // the other iptables was looked at for leftovers
	strays    chan []netip.Addr
	cutting   cutting
	nodes     settled // of the Nodes that the source has told of
	ways      ways
	waiting   []*enrolment
	mtu       int // of pods' links, as the conflist says; 0: it isn't known yet

	faults   faults
	problems []ruleset.Problem
	// nodeFaults are what of the node isn't as it should be, and nodeRepairs the last ones.
	nodeFaults  map[bridge.Kind]int
	nodeRepairs []report.NodeRepair
	// unenforced, files and leftOut are what was last said of other kinds of policy and of the source's files.
	unenforced []policy.Unenforced
	files      []report.File
	leftOut    map[[3]string]bool
	earlier    earlier
	metrics    *metrics
	stats      report.Stats
	lastSync   time.Time
	wellAt     time.Time // when the plugin was last told so
	status     atomic.Pointer[snapshot]
	beat       atomic.Int64 // when the loop last came round, Unix nanoseconds
}

// event is something that has come in. The loop calls it, and it says how much of the kernel is to be read for it.
type event func() iptables.Verify

// none is said of what changes nothing that the kernel should hold.
const none = iptables.Trust - 1

// Run runs the agent until ctx ends. What is in the kernel stays when it returns.
func Run(ctx context.Context, o Options) error {
	lock, err := Lock() // until all has ended that changes the kernel
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	driver, err := iptables.Open(ctx)
	if err != nil {
		return err
	}
	defer driver.Close()
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	a := newAgent(o, driver, links)

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
	servers, err := a.listen(ctx)
	if err != nil {
		return err
	}
	defer servers.close()

	var parts []func() error
	parts = append(parts,
		func() error { return a.runSource(ctx) },
		func() error { return a.watchRecords(ctx, watcher) },
		func() error { return iptables.Watch(ctx, a.drift.notice) },
		func() error { return a.loop(ctx) },
		func() error { return a.keepNode(ctx) },
		func() error { return a.reap(ctx) })
	parts = append(parts, servers.serve...)
	done := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			err := part()
			stop(err) // one that ends takes the others with it
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

func newAgent(o Options, driver *iptables.Driver, links netlinksafe.Handle) *agent {
	a := &agent{
		Options: o, driver: driver, links: links,
		events: make(chan event), drift: newDrift(), upkeep: upkeep{changed: make(chan struct{}, 1)},
		found: map[string]found{}, endpoints: map[string]endpoint.Endpoint{}, broken: endpoint.BrokenRecords{},
		shut: map[string]endpoint.Endpoint{},
		owed: none, strays: make(chan []netip.Addr, 1),
		opened: map[string]bool{}, enrolled: map[string]bool{},
		cutting: cutting{owed: true, walked: make(chan walked, 1)}, policies: []string{},
		faults: faults{log: o.Log, now: map[part]error{}, said: map[part]string{}, never: true},
	}
	a.metrics = newMetrics(a.status.Load)
	a.beat.Store(time.Now().UnixNano())
	a.publish()
	return a
}

func (a *agent) runSource(ctx context.Context) error {
	err := a.Source.Run(ctx, func(o *policy.Objects, err error) {
		a.hand(ctx, func() iptables.Verify {
			a.takeUpdate(o, err)
			return iptables.Trust
		})
	})
	if err != nil {
		return fmt.Errorf("source of policies: %w", err)
	}
	return nil
}

func (a *agent) loop(ctx context.Context) error {
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		verify := iptables.Trust
		select {
		case <-ctx.Done():
			if a.cutting.walking {
				<-a.cutting.walked
			}
			return nil
		case e := <-a.events:
			if verify = a.take(e); verify == none {
				continue
			}
		case <-a.drift.noticed:
			if !slices.ContainsFunc(a.drift.take(), func(g uint32) bool { return !a.driver.Knows(g) }) {
				continue // it was the agent's own doing
			}
			verify = iptables.All
		case <-resync.C:
			a.retryRecords()
			a.refused = nil // the kernel may take it by now: a module was loaded, or there is room
			a.reportShortage(ctx)
			verify = iptables.All
		case <-again.C:
		case w := <-a.cutting.walked:
			unknown := a.faults.now[partConnections] != nil
			a.takeWalk(w)
			if w.err != nil {
				again.Reset(retry)
			}
			if w.err != nil || !unknown {
				continue
			}
		}
		a.beat.Store(time.Now().UnixNano())
		again.Stop()
		if next := a.sync(ctx, verify); next > 0 {
			again.Reset(next)
		}
	}
}

// hand gives the event to the loop, and returns when it has taken it; false if ctx ended before.
func (a *agent) hand(ctx context.Context, e event) bool {
	select {
	case a.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// take takes the event and all others that wait to be taken: one look at the kernel is enough for all of them, and what a
// new pod waits for may be among them.
func (a *agent) take(e event) iptables.Verify {
	verify := e()
	for {
		select {
		case e := <-a.events:
			verify = max(verify, e())
		default:
			return verify
		}
	}
}

func (a *agent) takeUpdate(objects *policy.Objects, err error) {
	if objects != nil {
		a.told = a.settle(objects)
		a.parse()
		a.join()
	}
	a.reportFiles()
	a.reportUnenforced()
	a.faults.never = a.told == nil
	a.faults.set(partSource, err)
}

// parse reads the policies that are new.
func (a *agent) parse() {
	parsed := policy.Parse(a.told.Policies, a.parsed)
	if parsed == a.parsed {
		return
	}
	a.parsed, a.policies = parsed, make([]string, 0, len(a.told.Policies))
	for _, p := range a.told.Policies {
		a.policies = append(a.policies, p.Namespace+"/"+p.Name)
	}
	slices.Sort(a.policies)
}
