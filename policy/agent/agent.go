// Package agent owns the node's reconciler: from a source of Kubernetes objects and the node's endpoint records it
// computes what should be in the kernel, brings it there, and answers the plugin that asks to enrol a new pod. One
// goroutine does all of that, in the order in which things come in; nothing else changes the kernel.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/kernel"
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

// retry is how soon a failed change is tried again.
const retry = time.Second

type agent struct {
	Options
	driver *kernel.Driver
	links  netlinksafe.Handle

	updates chan update
	records chan dirwatch.Change
	enrols  chan *enrolment
	founds  chan found
	drift   chan struct{} // holds one: rules were changed since they were last read

	// The rest belongs to the loop's goroutine.
	objects   *policy.Objects
	sourceErr error
	endpoints map[string]endpoint.Endpoint
	recordErr error
	opened    map[string]bool // endpoints with enforcement "closed" whose links the agent has brought up
	published map[string]bool // endpoints whose addresses were told to other nodes
	ruleset   policy.Ruleset
	plan      overlay.Plan
	waiting   []*enrolment

	applyErr error
	reachErr error
	stats    Stats
	lastSync time.Time
	status   atomic.Pointer[Status]
	beat     atomic.Int64 // when the loop last came round, Unix nanoseconds
}

type update struct {
	objects *policy.Objects
	err     error
}

// Run runs the agent until ctx ends. What is in the kernel stays when it returns.
func Run(ctx context.Context, o Options) error {
	driver, err := kernel.Open(ctx)
	if err != nil {
		return err
	}
	defer driver.Close()
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	a := &agent{
		Options: o, driver: driver, links: links,
		updates: make(chan update), records: make(chan dirwatch.Change), enrols: make(chan *enrolment),
		drift:     make(chan struct{}, 1),
		endpoints: map[string]endpoint.Endpoint{}, opened: map[string]bool{},
	}
	a.beat.Store(time.Now().UnixNano())
	a.publish()

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
		func() error { return kernel.Watch(ctx, a.noticeDrift) },
		func() error { return a.loop(ctx) })
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

func (a *agent) runSource(ctx context.Context) error {
	err := a.Source.Run(ctx, func(o *policy.Objects, err error) {
		select {
		case a.updates <- update{o, err}:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return fmt.Errorf("source of policies: %w", err)
	}
	return nil
}

func (a *agent) watchRecords(ctx context.Context, w *dirwatch.Watcher) error {
	change := dirwatch.Change{Lost: true}
	for {
		select {
		case a.records <- change:
		case <-ctx.Done():
			return nil
		}
		var err error
		change, err = w.Next()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("directory of endpoint records: %w", err)
		}
	}
}

func (a *agent) noticeDrift() {
	select {
	case a.drift <- struct{}{}:
	default: // it will be read anyway
	}
}

func (a *agent) loop(ctx context.Context) error {
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		verify := kernel.Trust
		select {
		case <-ctx.Done():
			return nil
		case u := <-a.updates:
			a.takeUpdate(u)
		case c := <-a.records:
			a.takeRecords(c)
		case e := <-a.enrols:
			a.takeEnrolment(ctx, e)
			verify = kernel.Rules
		case f := <-a.founds:
			a.takeFound(f)
		case <-a.drift:
			verify = kernel.All
		case <-resync.C:
			verify = kernel.All
		case <-again.C:
		}
		a.beat.Store(time.Now().UnixNano())
		again.Stop()
		if next := a.sync(ctx, verify); next > 0 {
			again.Reset(next)
		}
	}
}

func (a *agent) takeUpdate(u update) {
	if u.err != nil {
		a.Log.Error("the source has errors; its last good state stays in force", "error", u.err)
	}
	if u.objects != nil {
		a.objects = u.objects
	}
	a.sourceErr = u.err
}

func (a *agent) takeRecords(c dirwatch.Change) {
	if c.Lost {
		all, err := endpoint.List()
		a.endpoints = map[string]endpoint.Endpoint{}
		for _, e := range all {
			a.endpoints[e.ID()] = e
		}
		a.setRecordErr(err)
	}
	for _, name := range c.Names {
		if id, ok := endpoint.IDOfFile(name); ok {
			a.takeRecord(id)
		}
	}
	for _, of := range []map[string]bool{a.opened, a.published} {
		maps.DeleteFunc(of, func(id string, _ bool) bool { _, ok := a.endpoints[id]; return !ok })
	}
}

func (a *agent) takeRecord(id string) {
	e, err := endpoint.Load(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		delete(a.endpoints, id)
	case err != nil:
		delete(a.endpoints, id) // closed: it is in no class
		a.setRecordErr(err)
	default:
		a.endpoints[id] = *e
	}
}

func (a *agent) setRecordErr(err error) {
	if err != nil {
		a.Log.Error("endpoint records can't be read; their pods stay closed", "error", err)
	}
	a.recordErr = err
}

// sync brings what is known into the kernel and answers whom it concerns. It returns how soon it should be called again
// even if nothing happens; 0 if there is no need.
func (a *agent) sync(ctx context.Context, verify kernel.Verify) time.Duration {
	defer a.publish()
	if a.objects == nil {
		return a.answer(errNotSynced)
	}
	ruleset := policy.Compile(a.state())
	a.logProblems(ruleset.Problems)
	same := !a.lastSync.IsZero() && slices.EqualFunc(a.ruleset.Chains, ruleset.Chains, equalChain) &&
		slices.EqualFunc(a.ruleset.Sets, ruleset.Sets, equalSet)
	result, err := a.driver.Apply(ctx, ruleset, verify)
	if err == nil {
		err = a.guard(verify)
	}
	if err != nil {
		if ctx.Err() != nil {
			return 0
		}
		a.Log.Error("the kernel does not hold what it should; what it holds closes", "error", err)
		a.applyErr = err
		a.stats.Failures++
		a.answer(err)
		return retry
	}
	if result.Changed {
		a.stats.Changes++
		if same && a.applyErr == nil {
			a.stats.Repairs++
			a.Log.Warn("somebody had changed weir's sets or rules; they are as they should be again")
		}
	}
	if a.lastSync.IsZero() {
		if err := a.driver.CleanOtherFlavour(ctx); err != nil {
			a.Log.Warn("leftovers of weir's in the other iptables", "error", err)
		}
	}
	a.ruleset, a.applyErr, a.lastSync = ruleset, nil, time.Now()
	next := a.answer(nil)
	if a.reachErr = a.reach(verify); a.reachErr != nil {
		a.Log.Error("the way to other nodes isn't as it should be", "error", a.reachErr)
		next = retry
	}
	a.open()
	if result.Changed || verify == kernel.All {
		a.cut()
	}
	if len(result.Left) > 0 {
		next = retry
	}
	return next
}

func (a *agent) state() policy.State {
	s := policy.State{Objects: *a.objects, Overlay: a.Node.Name != "" && a.Node.Encapsulation != overlay.Never}
	for _, id := range slices.Sorted(maps.Keys(a.endpoints)) {
		s.Endpoints = append(s.Endpoints, a.endpoints[id])
	}
	return s
}

func (a *agent) logProblems(problems []policy.Problem) {
	for _, p := range problems {
		if !slices.Contains(a.ruleset.Problems, p) {
			a.Log.Error("part of an object can't be enforced as written, and opens nothing", "object", p.Object, "field", p.Field, "problem", p.Message)
		}
	}
}

func (a *agent) knows(e endpoint.Endpoint) bool {
	if e.Enforcement == conf.Off {
		return true
	}
	_, ok := a.findPod(e.Pod)
	return ok
}

// findPod is the pod as the source knows it, if it is the one of that UID.
func (a *agent) findPod(p endpoint.Pod) (policy.Pod, bool) {
	i := slices.IndexFunc(a.objects.Pods, func(o policy.Pod) bool { return o.Namespace == p.Namespace && o.Name == p.Name })
	if i < 0 {
		return policy.Pod{}, false
	}
	return a.objects.Pods[i], policy.SameUID(a.objects.Pods[i].UID, p.UID)
}

func equalChain(a, b policy.Chain) bool {
	return a.Table == b.Table && a.Name == b.Name && slices.EqualFunc(a.Rules, b.Rules, func(a, b policy.Rule) bool { return a.String() == b.String() })
}

func equalSet(a, b policy.Set) bool { return a.Name == b.Name && slices.Equal(a.Entries, b.Entries) }

// class is the name of the class that holds the pod in that direction.
func class(classes []policy.Class, d policy.Direction, pod string) string {
	for _, c := range classes {
		if c.Direction != d || !slices.Contains(c.Pods, pod) {
			continue
		}
		if len(c.Policies) == 0 {
			return "open"
		}
		return strings.Join(c.Policies, ", ")
	}
	return "closed"
}
