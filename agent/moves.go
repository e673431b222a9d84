package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/weir-net/weir/agent/choice"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
)

// moving is the backend in use, and the backend that the agent should use.
type moving struct {
	// inUse is the name of the backend in use; empty if no backend works. Only the loop uses this field.
	inUse  conf.Backend
	chosen choice.Choice
	// failed is the error of the last attempt to move; nil if the move succeeded. again is the earliest time of the
	// next attempt.
	failed error
	again  time.Time
	// others is how many times cleanOther must still remove the other backends' sets and rules. cleanAt is the earliest
	// time of the next removal; zero means at the next resync.
	others  int
	cleanAt time.Time
	// both is true while the plugin denies new pods in both backends.
	both bool
	// lost is the error of the last DenyLost. Until DenyLost succeeds, the other backend's sets stay.
	lost error
	// present is the backend in use, for other goroutines. A message in moved says that present has changed.
	present atomic.Pointer[Backend]
	moved   chan struct{}
}

// removeWithin is how long the removal of the unused backends' sets and rules may take.
const removeWithin = 20 * time.Second

// use makes b the backend in use. It doesn't change the kernel.
func (a *agent) use(b Backend, name conf.Backend) {
	a.backend, a.moving.inUse = b, name
	a.moving.present.Store(&b)
	select {
	case a.moving.moved <- struct{}{}:
	default:
	}
}

// watchRules passes the kernel's messages about rules to drift. After a move it watches the rules of the new backend.
func (a *agent) watchRules(ctx context.Context) error {
	for {
		watched, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- (*a.moving.present.Load()).Watch(watched, a.drift.hear) }()
		select {
		case err := <-done:
			stop()
			return err
		case <-a.moving.moved:
			stop()
			if err := <-done; err != nil {
				return err
			}
		}
	}
}

// moveIfChosen moves to the chosen backend if another backend is in use. It waits until the loop knows the node's
// state, because the new backend's first ruleset must allow every connection that the old backend's ruleset allows.
func (a *agent) moveIfChosen(ctx context.Context) {
	m := &a.moving
	if m.chosen.Backend == m.inUse && m.failed != nil { // the choice has gone back to the backend in use
		m.failed = nil
		a.faults.set(partBackend, nil)
	}
	if m.chosen.Backend == m.inUse || m.chosen.Backend == "" || time.Now().Before(m.again) {
		return
	}
	if m.inUse != "" && (!a.cluster.known || !a.records.complete) {
		return
	}
	if a.awaitsRemoval() {
		a.kernel.debt = netfilter.All // so that this round removes the other backend's remains
		return
	}
	began, from := time.Now(), m.inUse
	if m.failed = a.move(ctx); m.failed != nil {
		m.failed = fmt.Errorf("move to the backend %s, %s: %w", m.chosen.Backend, m.chosen.Reason, m.failed)
		m.again = time.Now().Add(a.SettleChoice)
		m.others, a.kernel.debt = 1, netfilter.All // so that this round removes the new backend's rules
	} else {
		a.Log.Info("moved to another backend", "from", from, "to", m.inUse, "because", m.chosen.Reason,
			"took", time.Since(began))
	}
	a.faults.set(partBackend, m.failed)
}

// awaitsRemoval reports whether the move must wait until this round has removed remains of the other backend
// (cleanOther). An agent that was killed during a move leaves remains. If the move used these remains, it could drop
// packets that the policies allow: the killed agent may have left an empty set, and the rules that look up this set
// would be in force before the set has its entries. The move doesn't wait if the agent can't apply rules or sets now
// (partKernel), or if the removal has failed (partLeftovers).
func (a *agent) awaitsRemoval() bool {
	return a.moving.inUse != "" && a.moving.both && a.faults.now[partKernel] == nil && a.faults.now[partLeftovers] == nil
}

// move applies the ruleset with the chosen backend, and then uses that backend. The old backend's rules stay in
// force, and the next round removes them (cleanOther). Meanwhile, the plugin denies new pods in both backends, and
// packets must pass the rules of both backends. If the new backend refuses a part of the ruleset, the old backend
// stays in use.
func (a *agent) move(ctx context.Context) error {
	next, err := a.kind(a.moving.chosen.Backend).New(ctx)
	if err != nil {
		return err
	}
	if a.moving.inUse != "" {
		err = a.fill(ctx, next)
	}
	if err != nil {
		next.Close()
		if a.moving.inUse != "" && a.faults.now[partKernel] == nil {
			// A failed Apply may have closed all pods in the new backend. The old backend's rules are in force, so the
			// new backend's rules can be removed.
			removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
			defer cancel()
			err = errors.Join(err, a.kind(a.moving.chosen.Backend).Remove(removing))
		}
		return err
	}
	a.backend.Close()
	a.use(next, a.moving.chosen.Backend)
	a.moving.others = 2 // an ADD that began before the move may make a set of the old backend again
	a.stats.Moves++
	a.kernel.refused, a.kernel.left, a.kernel.refreshed, a.kernel.pluginChanged = nil, nil, false, false
	a.kernel.closed, a.kernel.debt = false, netfilter.All
	a.cutting.makeDue(true) // the new backend's ruleset may be newer than the old backend's ruleset
	return nil
}

func (a *agent) fill(ctx context.Context, next Backend) error {
	a.moving.both = true
	if err := endpoint.WriteBackend(""); err != nil {
		return err
	}
	if err := next.Read(ctx); err != nil {
		return err
	}
	// An ADD that still works with the old backend alone has written its record before it read the backend's name. So
	// this read of the records finds the ADD's pod.
	a.takeRecords(dirwatch.Change{Lost: true})
	if a.records.stale {
		return a.faults.now[partRecords]
	}
	refused := a.kernel.refused
	a.kernel.refused = nil
	_, err := next.Apply(ctx, a.compile().ruleset, netfilter.Trust)
	if errors.As(err, new(*netfilter.UnknownError)) {
		err = nil
	}
	if err != nil {
		a.kernel.refused = refused
	}
	return err
}

// kind returns the backend of that name. If there is no such backend, the result's function New returns an error.
func (o Options) kind(name conf.Backend) BackendKind {
	for _, k := range o.Backends {
		if k.Name == name {
			return k
		}
	}
	return BackendKind{Name: name, New: func(context.Context) (Backend, error) {
		return nil, fmt.Errorf("no backend %q", name)
	}}
}

// begin sets the backend to start with, and the choice. If the file from which the plugin reads the backend's name
// doesn't have this name, begin makes the plugin deny new pods in both backends. It does so even if no backend works,
// because a backend may work later. Call begin before the first change of the kernel.
func (a *agent) begin(name conf.Backend, chosen choice.Choice) error {
	a.moving.inUse, a.moving.chosen = name, chosen
	a.publishStatus()
	before, err := endpoint.ReadBackend()
	if err != nil || before == name {
		return err
	}
	a.moving.both = true
	return endpoint.WriteBackend("")
}

// removeOthers removes the sets and rules of the backends that aren't in use, and then tells the plugin the name of
// the backend in use. That backend's rules must be in force, so that no packet passes unchecked.
func (a *agent) removeOthers(ctx context.Context) error {
	if a.moving.inUse == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, removeWithin)
	defer cancel()
	for _, k := range a.Backends {
		if k.Name == a.moving.inUse {
			continue
		}
		if err := k.Remove(ctx); err != nil {
			return fmt.Errorf("remove the backend %s: %w", k.Name, err)
		}
	}
	err := endpoint.WriteBackend(a.moving.inUse)
	a.moving.both = a.moving.both && err != nil
	return err
}

// keepBackendName checks that the file from which the plugin reads the backend's name still has the name of the
// backend in use. Another program may have removed the file: then the plugin denies new pods in both backends. So the
// next rounds remove the sets that the plugin has made in the other backend, and then write the name (removeOthers).
func (a *agent) keepBackendName() {
	if a.moving.inUse == "" || a.moving.others > 0 {
		return
	}
	name, err := endpoint.ReadBackend()
	if err == nil && name == a.moving.inUse {
		return
	}
	a.Log.Warn("another program changed or removed the file with the backend's name; the agent writes the name again",
		"name", name, "error", err)
	a.moving.both, a.moving.others = true, 2 // 2, because a running ADD may make a set again
}
