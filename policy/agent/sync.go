package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/kernel"
)

// retry is how soon a failed change is tried again.
const retry = time.Second

// sync brings what is known into the kernel and answers whom it concerns. It returns how soon it should be called again
// even if nothing happens; 0 if there is no need.
func (a *agent) sync(ctx context.Context, verify kernel.Verify) time.Duration {
	defer a.publish()
	if source, ok := a.Source.(Contact); ok {
		a.faults.set(partAPI, source.Contact())
	}
	if a.objects == nil || !a.listed {
		return a.keepClosed(ctx, verify)
	}
	began := time.Now()
	defer func() { a.metrics.syncs.Observe(time.Since(began).Seconds()) }()
	ruleset := policy.Compile(a.state())
	a.plan = a.computePlan()
	a.reportProblems(slices.Concat(ruleset.Problems, a.plan.Problems))
	a.cutting.newest.Store(&scene{ruleset, a.pods()})
	result, err := a.driver.Apply(ctx, ruleset, verify)
	if err == nil {
		err = a.guard(verify)
	}
	if err != nil {
		if ctx.Err() != nil {
			return 0
		}
		a.faults.set(partKernel, err)
		a.stats.Failures++
		a.cutting.owed = true // some of it may be done
		return sooner(a.answer(err), retry)
	}
	if result.Changed {
		a.stats.Changes++
		same := !a.lastSync.IsZero() && !a.purged && slices.EqualFunc(a.ruleset.Sets, ruleset.Sets, equalSet) &&
			slices.EqualFunc(a.ruleset.Chains, ruleset.Chains, equalChain)
		if same && a.faults.now[partKernel] == nil {
			a.stats.Repairs++
			a.Log.Warn("somebody had changed weir's sets or rules; they are as they should be again")
		}
	}
	if a.lastSync.IsZero() {
		if err := a.driver.CleanOtherFlavour(ctx); err != nil {
			a.Log.Warn("leftovers of weir's in the other iptables", "error", err)
		}
	}
	a.ruleset, a.lastSync, a.purged = ruleset, time.Now(), false
	a.faults.set(partKernel, nil)
	a.tellPlugin() // before the runtime's configuration is there and it asks
	next := a.answer(nil)
	if err := a.reach(verify); err != nil {
		next = sooner(next, retry)
	}
	a.open()
	a.publishAddresses(ctx)
	a.cutting.note(result, verify)
	a.walk()
	if len(result.Left) > 0 {
		next = sooner(next, retry)
	}
	return next
}

// keepClosed is sync while there is no good state yet. What the kernel holds is left as it is, unless it holds too little to
// close the pods.
func (a *agent) keepClosed(ctx context.Context, verify kernel.Verify) time.Duration {
	if verify != kernel.All && a.kept {
		return a.answer(errNotSynced)
	}
	closed, err := a.driver.KeepClosed(ctx, policy.Compile(a.state()))
	if err == nil {
		err = a.guard(verify)
	}
	if ctx.Err() != nil {
		return 0
	}
	a.faults.set(partKernel, err)
	a.kept = err == nil
	if err != nil {
		a.stats.Failures++
		return sooner(a.answer(errors.Join(errNotSynced, err)), retry)
	}
	if closed {
		a.Log.Warn("weir's rules were not there, or not all of them, and there is no good state of the policies yet: the pods of this node are closed")
	}
	return a.answer(errNotSynced)
}

// sooner is the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

func (a *agent) state() policy.State {
	s := policy.State{Parsed: a.parsed, Node: a.Node.Name, Overlay: a.Node.Name != "" && a.Node.Encapsulation != overlay.Never}
	if a.objects != nil {
		s.Objects = *a.objects
	}
	s.Endpoints = a.attached()
	return s
}

// attached are the attachments of this node, in the order of their IDs; after them those whose records are broken.
func (a *agent) attached() []endpoint.Endpoint {
	all := make([]endpoint.Endpoint, 0, len(a.endpoints)+len(a.shut))
	for _, of := range []map[string]endpoint.Endpoint{a.endpoints, a.shut} {
		for _, id := range slices.Sorted(maps.Keys(of)) {
			all = append(all, of[id])
		}
	}
	return all
}

func (a *agent) knows(e endpoint.Endpoint) bool {
	if e.Enforcement == conf.Off {
		return true
	}
	_, ok := find(a.objects.Pods, e.Pod)
	return ok
}

func equalChain(a, b policy.Chain) bool {
	return a.Table == b.Table && a.Name == b.Name && slices.EqualFunc(a.Rules, b.Rules, func(a, b policy.Rule) bool { return a.String() == b.String() })
}

func equalSet(a, b policy.Set) bool { return a.Name == b.Name && slices.Equal(a.Entries, b.Entries) }

// What class says of pods that no policy isolates, and of those that are in no class at all.
const (
	classOpen   = "open"
	classClosed = "closed"
)

// class is the name of the class that holds the pod in that direction.
func class(classes []policy.Class, d policy.Direction, pod string) string {
	for _, c := range classes {
		if c.Direction != d || !slices.Contains(c.Pods, pod) {
			continue
		}
		if len(c.Policies) == 0 {
			return classOpen
		}
		return strings.Join(c.Policies, ", ")
	}
	return classClosed
}
