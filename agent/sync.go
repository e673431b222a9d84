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
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// retry is how soon a failed change is tried again.
const retry = time.Second

// sync brings what is known into the kernel and answers whom it concerns. It returns how soon it should be called again
// even if nothing happens; 0 if there is no need.
func (a *agent) sync(ctx context.Context, verify iptables.Verify) time.Duration {
	defer a.publish()
	defer a.tellUpkeep()
	if source, ok := a.Source.(Contact); ok {
		a.faults.set(partAPI, source.Contact())
	}
	verify = max(verify, a.owed)
	if a.objects == nil || !a.listed {
		return a.keepClosed(ctx, verify)
	}
	a.settleAnew(verify)
	began := time.Now()
	defer func() { a.metrics.syncs.Observe(time.Since(began).Seconds()) }()
	want, result, verify, err := a.apply(ctx, verify)
	a.planWays(verify)
	a.reportProblems(slices.Concat(want.Problems, a.ways.problems(), a.misplacedPods()))
	var unknown *iptables.UnknownError
	brought := err == nil || errors.As(err, &unknown)
	if guardErr := errors.Join(a.guard(verify), a.keepGate(verify)); guardErr != nil {
		err, unknown = errors.Join(err, guardErr), nil
	}
	if ctx.Err() != nil {
		return 0
	}
	if brought {
		a.noteChange(want, result, verify, err == nil)
	} else {
		a.cutting.owed = true // some of it may be done
		a.lookBefore()
	}
	if err != nil {
		a.faults.set(partKernel, err)
		a.stats.Failures++
		if a.owed = iptables.All; unknown != nil { // tables that are unknown are read each time
			a.owed = none
		}
		if brought {
			a.walk()
		}
		return sooner(a.answer(err), retry)
	}
	a.lastSync, a.owed = time.Now(), none
	a.faults.set(partKernel, nil)
	a.cleanOther(ctx, verify)
	if err := a.unsure(); err != nil {
		if a.unlisted {
			a.owed = iptables.All
		}
		a.walk()
		return sooner(a.answer(err), retry)
	}
	a.tellPlugin() // before the runtime's configuration is there and it asks
	a.renewConflist()
	next := a.answer(nil)
	if !a.reach(verify) {
		next = sooner(next, retry)
	}
	a.reportProblems(slices.Concat(want.Problems, a.ways.problems(), a.misplacedPods()))
	a.open()
	a.publishAddresses(ctx)
	a.walk()
	if len(result.Left) > 0 {
		next = sooner(next, retry)
	}
	return next
}

// apply brings into the kernel what is known, without what the kernel refuses of it. verified is how much was read.
func (a *agent) apply(ctx context.Context, verify iptables.Verify) (
	want ruleset.Ruleset, all iptables.Result, verified iptables.Verify, err error,
) {
	for {
		read, readErr := a.read(ctx, verify)
		verified = max(verified, read)
		want = policy.Compile(a.state())
		a.cutting.newest.Store(&scene{want, a.pods()})
		var result iptables.Result
		result, err = a.bring(ctx, readErr, want, read)
		all.Changed, all.Closes, all.Rules = all.Changed || result.Changed, all.Closes || result.Closes, all.Rules || result.Rules
		all.Left, all.Strays = result.Left, append(all.Strays, result.Strays...)
		var refused *iptables.RefusedError
		if !errors.As(err, &refused) || !a.without(refused.Refused) {
			return want, all, verified, err
		}
		verify = iptables.Trust // it is read again if it isn't known
	}
}

// without takes note of what the kernel refuses. It is false if all of that was known.
func (a *agent) without(refused ruleset.Refused) (news bool) {
	for r, why := range refused {
		if _, ok := a.refused[r]; !ok {
			news = true
			if a.refused == nil {
				a.refused = ruleset.Refused{}
			}
			a.refused[r] = why
		}
	}
	// A walk that is on its way may have left connections alone that the refused part would have let through.
	a.cutting.owed = a.cutting.owed || a.cutting.walking
	return news
}

// read reads what the kernel holds, if that is to be verified or isn't known, and the records after it. In this order:
// what the plugin has changed in the kernel by then has a record by which the agent comes to the same.
func (a *agent) read(ctx context.Context, verify iptables.Verify) (iptables.Verify, error) {
	if verify != iptables.All && !a.driver.Unread() {
		return verify, nil
	}
	err := a.driver.Read(ctx)
	a.takeRecords(dirwatch.Change{Lost: true})
	return iptables.All, err
}

// bring brings the ruleset into the kernel. If it isn't known what the kernel holds, only weir's rules get back their
// place before all others.
func (a *agent) bring(ctx context.Context, readErr error, want ruleset.Ruleset, verify iptables.Verify) (iptables.Result, error) {
	if readErr != nil {
		return iptables.Result{}, errors.Join(readErr, a.driver.PutFirst(ctx, want))
	}
	if verify == iptables.All { // which was read already
		verify = iptables.Trust
	}
	return a.driver.Apply(ctx, want, verify)
}

// noteChange takes in what the ruleset has changed in the kernel. If not all that it had held is known, it isn't known
// either who had changed something.
func (a *agent) noteChange(want ruleset.Ruleset, result iptables.Result, verify iptables.Verify, known bool) {
	if result.Changed {
		a.stats.Changes++
		if known && a.somebodys(want, result) {
			a.stats.Repairs++
			a.Log.Warn("somebody had changed weir's sets or rules; they are as they should be again")
		}
	}
	a.ruleset, a.purged = want, false
	if verify == iptables.All {
		a.moved = a.ending
	}
	a.cutting.note(result, verify)
	if len(result.Strays) > 0 {
		select {
		case a.strays <- result.Strays:
		default: // the next look at the kernel finds them again
		}
	}
}

// somebodys says whether what was changed had been changed by somebody else: the agent wants what it wanted before, and
// of sets the plugin can't have done it for an attachment that began or ended meanwhile.
func (a *agent) somebodys(want ruleset.Ruleset, result iptables.Result) bool {
	if a.lastSync.IsZero() || a.faults.now[partKernel] != nil || !slices.EqualFunc(a.ruleset.Chains, want.Chains, equalChain) {
		return false
	}
	return result.Rules || (!a.purged && !a.moved && slices.EqualFunc(a.ruleset.Sets, want.Sets, equalSet))
}

// unsure says why no pod is let in though the kernel holds what the agent knows: it doesn't know all.
func (a *agent) unsure() error {
	if a.unlisted {
		return a.faults.now[partRecords]
	}
	return a.faults.now[partConnections]
}

// cleanOther takes away what weir may have left in the iptables that the node doesn't use.
func (a *agent) cleanOther(ctx context.Context, verify iptables.Verify) {
	if a.cleaned || verify != iptables.All {
		return
	}
	err := a.driver.CleanOtherFlavour(ctx)
	a.cleaned = err == nil
	a.faults.set(partLeftovers, err)
}

// keepClosed is sync while there is no good state yet. What the kernel holds is left as it is, unless it holds too little to
// close the pods.
func (a *agent) keepClosed(ctx context.Context, verify iptables.Verify) time.Duration {
	if verify != iptables.All && a.kept {
		return a.answer(errNotSynced)
	}
	closed, err := a.driver.KeepClosed(ctx, policy.Compile(a.state()))
	err = errors.Join(err, a.guard(verify), a.keepGateClosed())
	if ctx.Err() != nil {
		return 0
	}
	a.faults.set(partKernel, err)
	a.kept = err == nil
	a.lookBefore()
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
	s := policy.State{Parsed: a.parsed, Refused: a.refused, Node: a.Node.Name}
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
	if _, ok := find(a.objects.Pods, e.Pod); ok {
		return true
	}
	return len(a.madeBy(e)) > 0
}

func equalChain(a, b ruleset.Chain) bool {
	return a.Table == b.Table && a.Name == b.Name && slices.EqualFunc(a.Rules, b.Rules, ruleset.Rule.Equal)
}

func equalSet(a, b ruleset.Set) bool { return a.Name == b.Name && slices.Equal(a.Entries, b.Entries) }

// class is the name of the class that holds the pod in that direction.
func class(classes []ruleset.Class, d ruleset.Direction, pod string) string {
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
