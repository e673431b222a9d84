package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

type kernelView struct {
	// refused has the parts that the kernel has refused since the last resync. The map is replaced, never changed,
	// because the engine keeps the map and compares it with the next map.
	refused ruleset.Refused
	// debt is how much of the kernel the next reconcile must read at least. Usually it is netfilter.All (everything)
	// after a failure, and otherwise netfilter.Trust (only what the backend doesn't remember).
	debt          netfilter.Verify
	pluginChanged bool // the plugin has changed sets since the last apply
	// refreshing is true while a resync reads the kernel part by part. refreshed is true once that resync has read
	// everything.
	refreshing, refreshed bool
	left                  []string
	closed                bool // true if KeepClosed has succeeded while there is no usable state yet
	// lastSync is when the kernel last had everything that it should have. Zero means never.
	lastSync  time.Time
	earlier   earlierRules
	guard     guardView
	linkLocal linkLocalView
	notes     []ruleset.Problem // the backend's notes after the last successful apply
}

func (k *kernelView) refuse(refused ruleset.Refused) (news bool) {
	all := maps.Clone(k.refused)
	for r, why := range refused {
		if _, ok := all[r]; ok {
			continue
		}
		if news = true; all == nil {
			all = ruleset.Refused{}
		}
		all[r] = why
	}
	k.refused = all
	return news
}

// changedByAnother reports whether another program has changed the kernel: the agent had to write although its
// ruleset is the same as before. Changed sets count only if they can't be the plugin's work.
func (k *kernelView) changedByAnother(before, now ruleset.Ruleset, result netfilter.Result, churn bool) bool {
	if k.lastSync.IsZero() || !slices.EqualFunc(before.Chains, now.Chains, ruleset.Chain.Equal) {
		return false
	}
	return result.Rules || (!k.pluginChanged && !churn && slices.EqualFunc(before.Sets, now.Sets, equalSet))
}

func equalSet(a, b ruleset.Set) bool { return a.Name == b.Name && a.Entries.Equal(b.Entries) }

type earlierRules struct {
	members map[ruleset.Direction]map[netip.Addr]bool // nil: the sets could not be read
	read    bool
}

func (a *agent) readEarlier() {
	if len(a.snapshots.enforced.Load().ruleset.Sets) > 0 {
		return
	}
	members, err := a.backend.Members()
	if err != nil {
		a.Log.Warn("can't read which pods an earlier agent's rules are enforced on", "error", err)
	}
	a.kernel.earlier = earlierRules{members, true}
}

type applied struct {
	*snapshot
	netfilter.Result
	verify  netfilter.Verify
	err     error
	readErr error // the error of reading the kernel; after such an error, nothing was applied
}

// done reports whether the kernel has the ruleset. It ignores tables that can't be read.
func (p *applied) done() bool { return p.err == nil || p.unknown() }

// unknown reports whether some tables can't be read, while all other tables have their rules.
func (p *applied) unknown() bool {
	return p.readErr == nil && errors.As(p.err, new(*netfilter.UnknownError))
}

func (a *agent) apply(ctx context.Context, verify netfilter.Verify) (all applied) {
	for {
		read, readErr := a.readKernel(ctx, verify)
		a.cluster.engine.SetStrays6(a.backend.HasPods(conf.IPv6))
		s := a.compile()
		result, err := a.bring(ctx, readErr, s.ruleset, read)
		all.snapshot, all.verify, all.err, all.readErr = s, max(all.verify, read), err, readErr
		if all.Closed = result.Closed; all.Changed {
			all.Closed = nil
		}
		all.Changed, all.Closes = all.Changed || result.Changed, all.Closes || result.Closes
		all.Rules = all.Rules || result.Rules
		all.Late = append(all.Late, result.Late...)
		all.Left, all.Strays, all.Notes = result.Left, append(all.Strays, result.Strays...), result.Notes
		var refused *netfilter.RefusedError
		if !errors.As(err, &refused) {
			return all
		}
		// A running walk through the connections leaves a connection alone if the newest target gives another verdict
		// on the connection (walkConnections). The kernel has refused this target, so another walk is due.
		a.cutting.makeDue(a.cutting.walking)
		if !a.kernel.refuse(refused.Refused) {
			return all
		}
		verify = netfilter.Trust // even with Trust, Apply reads tables that are unknown
	}
}

// readKernel reads the kernel if verify is netfilter.All or the kernel's state is unknown. It doesn't read the kernel
// again if a resync has just read everything part by part (refresh). Afterwards it reads the records. In this order,
// the records show each ADD and DEL whose changes the agent has found in the kernel.
func (a *agent) readKernel(ctx context.Context, verify netfilter.Verify) (netfilter.Verify, error) {
	if verify != netfilter.All && !a.backend.Unread() {
		return verify, nil
	}
	var err error
	if a.moving.both {
		// DenyLost adds each backend's strays to the other backend's sets. So Read finds the strays in the sets of the
		// backend in use, before the other backend's sets are removed.
		a.kernel.refreshed = false
		a.moving.lost = attachment.NewNode().DenyLost()
	}
	if !a.kernel.refreshed {
		err = a.backend.Read(ctx)
	}
	a.kernel.refreshed = false
	a.takeRecords(dirwatch.Change{Lost: true})
	return netfilter.All, err
}

func (a *agent) bring(
	ctx context.Context, readErr error, want ruleset.Ruleset, verify netfilter.Verify,
) (netfilter.Result, error) {
	if readErr != nil {
		return netfilter.Result{}, errors.Join(readErr, a.backend.PutFirst(ctx, want))
	}
	if verify == netfilter.All { // readKernel has read everything
		verify = netfilter.Trust
	}
	return a.backend.Apply(ctx, want, verify)
}

// takeApplied records what was applied. It counts a change as a repair of another program's change only if the kernel
// had no fault before this round, and the round has had no error so far (the parameter well). Otherwise the change may
// be the agent's own.
func (a *agent) takeApplied(p applied, well bool) {
	if p.Changed {
		a.stats.Changes++
		before := a.snapshots.enforced.Load().ruleset
		if well && a.faults.now[partKernel] == nil &&
			a.kernel.changedByAnother(before, p.ruleset, p.Result, a.records.churn) {
			a.stats.Repairs++
			a.Log.Warn("another program changed weir's sets or rules; weir has restored them")
		}
	}
	for _, err := range p.Late {
		a.stats.Failures++
		a.Log.Warn("a program has failed after it changed weir's rules; weir has read the rules again", "error", err)
	}
	a.snapshots.enforced.Store(p.snapshot)
	a.kernel.pluginChanged = false
	if p.verify == netfilter.All {
		a.records.kernelRead(a.enrolments.done)
	}
	read := p.verify
	if a.kernel.refreshing { // the change may also repair sets or rules that the resync has already read
		read = netfilter.All
	}
	gone := len(p.Closed) > 0 && !slices.ContainsFunc(p.Closed, a.cluster.engine.HasAddress)
	a.cutting.afterApply(p.Result, read, gone)
	a.reaper.offer(p.Strays)
}

// cleanOther removes weir's rules from the flavour and backend that the node doesn't use, in a round that has read
// everything. If the removal fails, cleanOther tries again at each resync. The removal must succeed moving.others
// times.
func (r *round) cleanOther(ctx context.Context) {
	if r.moving.others == 0 {
		return
	}
	if r.verify != netfilter.All {
		r.cleanSoon()
		return
	}
	r.moving.cleanAt = time.Time{}
	if err := r.moving.lost; r.moving.both && err != nil {
		r.faults.set(partLeftovers, err)
		r.kernel.debt, r.next = netfilter.All, sooner(r.next, retry)
		return
	}
	err := errors.Join(r.backend.CleanOtherFlavour(ctx), r.removeOthers(ctx))
	r.faults.set(partLeftovers, err)
	if err != nil {
		return
	}
	if r.moving.others--; r.moving.others > 0 {
		r.cleanSoon()
	}
	if r.moving.chosen.Backend != r.moving.inUse { // a move may have waited for this removal, so try at once
		r.next = sooner(r.next, time.Nanosecond)
	}
}

// cleanSoon makes a removal due before the next resync, unless the last removal has failed.
func (r *round) cleanSoon() {
	if r.faults.now[partLeftovers] != nil {
		return
	}
	if r.moving.cleanAt.IsZero() {
		r.moving.cleanAt = time.Now().Add(retry)
	}
	r.next = sooner(r.next, retry)
}

// cleaningDue reports whether this round must read everything so that it can remove the other backend's remains. It
// returns false while a plugin waits, or while a resync reads the kernel. The next resync then removes the remains.
func (a *agent) cleaningDue() bool {
	at := a.moving.cleanAt
	return !at.IsZero() && !time.Now().Before(at) && len(a.enrolments.waiting) == 0 && !a.kernel.refreshing
}

// keepClosed does the work of a reconcile while there is no usable state. In a family with complete rules of an
// earlier agent, these rules stay. In any other family, the pods are closed.
func (a *agent) keepClosed(ctx context.Context, verify netfilter.Verify) time.Duration {
	if verify != netfilter.All && a.kernel.closed {
		return a.answer(errNotSynced)
	}
	fell, err := a.backend.KeepClosed(ctx, a.present().ruleset)
	err = errors.Join(err, a.keepGuard(verify), a.keepLinkLocal(verify), a.keepGateClosed())
	if ctx.Err() != nil {
		return 0
	}
	a.faults.set(partKernel, err)
	a.kernel.closed = err == nil
	a.readEarlier()
	if err != nil {
		a.stats.Failures++
		return sooner(a.answer(errors.Join(errNotSynced, err)), retry)
	}
	if len(fell) > 0 {
		a.Log.Warn("weir's rules were missing or incomplete, and there is no good state of the policies yet: "+
			"the pods of this node are closed in these families", "families", fmt.Sprintf("%v", fell))
	}
	return a.answer(errNotSynced)
}
