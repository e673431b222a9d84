// Package nftables is the backend nftables. It owns the tables "ip weir" and "ip6 weir" of nf_tables, compares them
// with a ruleset.Ruleset, and applies the difference. If a change allows some packets and denies others, it takes
// several transactions (steps.go).
//
// Invariants:
//   - A packet that both the old and the new state deny never passes during a change. This is also true for a packet
//     that is on its way during a transaction.
//   - Applying a ruleset twice changes nothing.
//   - In other programs' tables, the package changes only its own rules in the chain FORWARD of filter (accept.go).
//     Driver.Legacy does the same in iptables-legacy's tables.
//   - The package uses netlink, and starts no program. Only an implementation of LegacyForward may start programs.
package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// Driver applies rulesets to the kernel. Only Inspect, Watch and Sets may be called from several goroutines.
type Driver struct {
	// Legacy keeps weir's rules in the chains FORWARD of iptables-legacy. If Legacy is nil, the driver doesn't look at
	// these chains.
	Legacy LegacyForward

	reader  *nftnl.Reader
	sender  nftnl.Sender
	have    *state
	settled *ruleset.Ruleset // the last ruleset, if the kernel has exactly this ruleset; otherwise nil
	fresh   bool
	// pods is true for a family if the family's set of all pods may have entries (HasPods).
	pods     [len(conf.Families)]bool
	lowering lowering
	refresh  *refresh // a reading of the kernel's state that has begun, or nil
	// knownAt is the last generation of nf_tables at which the kernel had exactly the state d.have, or 0 if it is
	// unknown.
	knownAt   uint32
	known     nftnl.KnownChanges
	accepting [len(conf.Families)]accepting
}

// LegacyForward keeps rules in the chains FORWARD of iptables-legacy that drop packets by default. The rules accept
// pods' packets. Keep looks at a chain only after Forget, after a failure, or if the rules differ from those of its
// last call.
type LegacyForward interface {
	// Keep returns true if the wanted rules are the same as before, but Keep has changed weir's rules in the chain again:
	// another program has changed the chain.
	Keep(ctx context.Context, f conf.Family, rules []ruleset.Rule) (repaired bool)
	Forget()
	// Notes say which chains still drop pods' packets, and why.
	Notes() []netfilter.Note
}

// New returns a driver. It doesn't read or change the kernel.
func New() *Driver { return &Driver{reader: nftnl.NewReader()} }

// Close ends the driver's connections to the kernel. Rules and sets stay.
func (d *Driver) Close() {
	d.reader.Close()
	d.sender.Close()
}

func (d *Driver) Tool() string { return "nftables" }

// triesOfAChange is how often a transaction is tried. The kernel refuses a transaction if another program has changed
// the tables since they were read.
const triesOfAChange = 3

// Apply makes weir's tables in the kernel equal to the ruleset.
//
//   - After a RefusedError, the kernel has the old state, or a state between the old and the new. The caller must leave
//     the refused parts out of the next ruleset.
//   - If a transaction fails with another error, Apply tries to close the pods (see closeAll) of each family whose
//     rules in the kernel don't check all packets.
//   - If Apply can't read weir's tables, it closes no pods.
func (d *Driver) Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error) {
	var all netfilter.Result
	if verify == netfilter.Trust {
		r, done := d.applyEntries(want)
		if done {
			return r, nil
		}
		all = r
	}
	return d.applyTo(ctx, want, verify, conf.Families[:], all)
}

// applyTo changes only the tables of the given families. The parameter all is the result of transactions that the
// caller has already made. applyTo adds its own result.
func (d *Driver) applyTo(
	ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify, families []conf.Family, all netfilter.Result,
) (netfilter.Result, error) {
	d.settled = nil
	if err := d.look(ctx, verify); err != nil {
		return all, err
	}
	whole := d.lowering.lower(want)
	alone, reread := false, false
	for try := 1; ; try++ {
		l := whole.only(families)
		r, p, err := d.apply(l, alone)
		all = joined(all, r)
		r = all
		var refused *nftnl.RefusedError
		if !errors.As(err, &refused) {
			if err != nil {
				return r, errors.Join(err, d.closeAll(ctx, l))
			}
			repaired := d.keepAccepting(ctx, whole, families)
			r.Changed, r.Rules, r.Notes = r.Changed || repaired, r.Rules || repaired, d.notes()
			if len(families) == len(conf.Families) {
				d.settled = &want
			}
			return r, nil
		}
		parts, someElement := l.refusedParts(refused)
		switch {
		case d.lowering.without(refused):
			whole = d.lowering.lower(want)
		case len(parts) > 0 && errors.Is(err, unix.ENOENT) && !reread:
			// Another program may have deleted the table, so the driver reads the table and tries again. If instead
			// the kernel lacks a part that a rule needs, the kernel refuses the rule again.
			reread = true
			if err := d.Read(ctx); err != nil {
				return r, errors.Join(err, d.closeAll(ctx, l))
			}
		case len(parts) > 0:
			return r, &netfilter.RefusedError{Refused: parts}
		case someElement && !alone:
			alone = true
		case try < triesOfAChange && d.forgetMissing(p):
		case try >= triesOfAChange:
			return r, errors.Join(fmt.Errorf("change the tables %s of nf_tables: %w", tableName, err), d.closeAll(ctx, l))
		default:
			if err := d.Read(ctx); err != nil {
				return r, errors.Join(err, d.closeAll(ctx, l))
			}
		}
	}
}

// joined adds up the results of two tries of one Apply. If the first try has changed something, Closed is nil in the
// sum.
func joined(a, b netfilter.Result) netfilter.Result {
	if b.Strays = append(a.Strays, b.Strays...); a.Changed {
		b.Changed, b.Rules, b.Closes, b.Closed = true, a.Rules || b.Rules, a.Closes || b.Closes, nil
	}
	return b
}

// apply commits the transactions from the known state to the ruleset. If the parameter alone is true, each new element
// has a request of its own, so that a refusal names the element. p is the plan of the last transaction.
func (d *Driver) apply(want lowered, alone bool) (r netfilter.Result, p *plan, err error) {
	for _, f := range conf.Families {
		if want[f] != nil {
			d.have[f].share(want[f])
		}
	}
	states, count := statesOf(*d.have, want)
	whole := makePlan(*d.have, want, alone)
	if d.fresh {
		r.Strays = whole.strays
	}
	for i := range count {
		if p = whole; count > 1 {
			p = makePlan(*d.have, nth(states, i), alone)
		}
		if !p.batch.Empty() {
			if err := d.commit(&p.batch); err != nil {
				// After a RefusedError, the kernel's state hasn't changed.
				if !errors.As(err, new(*nftnl.RefusedError)) {
					d.have, d.knownAt = nil, 0
				}
				return r, p, err
			}
			r.Changed, r.Rules, r.Closes = true, whole.rules, whole.closes
		}
		d.fresh = false
		d.have.advance(p)
	}
	r.Closed = whole.closed
	return r, p, nil
}

func (d *Driver) commit(b *nftnl.Batch) error {
	before, _ := d.reader.Generation()
	if err := d.sender.Commit(b); err != nil {
		return err
	}
	after, _ := d.reader.Generation()
	d.known.Add(before, after, 1)
	if d.knownAt != 0 && d.knownAt == before && after == before+1 {
		d.knownAt = after
	} else {
		d.knownAt = 0
	}
	return nil
}

// forgetMissing looks up the elements that the plan deletes, and forgets those that the plugin has already deleted. It
// returns true if there are such elements. It doesn't read whole sets: d.have would then get elements that the plugin
// has just added, and the next try would delete these elements.
func (d *Driver) forgetMissing(p *plan) (any bool) {
	found, err := d.reader.Find(p.deletes)
	if err != nil {
		return false
	}
	for i, q := range p.deletes {
		for f := range tables {
			s, ok := d.have[f].sets[q.Set.Name]
			if found[i] != nil || q.Table != tables[f] || !ok {
				continue
			}
			s.entries, any = s.entries.Without(entryOf(s.layout, q.Element).Element), true
			d.have[f].sets[q.Set.Name] = s
		}
	}
	return any
}

// KeepClosed protects the pods until a ruleset can be compiled. It doesn't change a family's chains if they are
// complete. To families with incomplete chains, it applies the ruleset closed, which has no classes. It returns the
// families with incomplete chains.
func (d *Driver) KeepClosed(ctx context.Context, closed ruleset.Ruleset) (fell []conf.Family, err error) {
	if fell, err = d.incomplete(ctx, closed); len(fell) == 0 {
		return nil, err
	}
	_, err = d.applyTo(ctx, closed, netfilter.Trust, fell, netfilter.Result{})
	return fell, err
}

// Stands reads the kernel's state, and reports whether weir's chains are complete for the families of the ruleset.
func (d *Driver) Stands(ctx context.Context, closed ruleset.Ruleset) (bool, error) {
	fell, err := d.incomplete(ctx, closed)
	return len(fell) == 0 && err == nil, err
}

func (d *Driver) incomplete(ctx context.Context, closed ruleset.Ruleset) (fell []conf.Family, err error) {
	if err := d.Read(ctx); err != nil {
		return nil, err
	}
	want := new(lowering).lower(closed)
	for _, f := range conf.Families {
		if want[f] != nil && !d.have[f].stands(want[f]) {
			fell = append(fell, f)
		}
	}
	return fell, nil
}

// PutFirst does nothing. With nftables, no other program can put rules ahead of weir's: weir's chains have their own
// hooks.
func (d *Driver) PutFirst(context.Context, ruleset.Ruleset) error { return nil }

// CleanOtherFlavour does nothing, because nftables has only one form of rules.
func (d *Driver) CleanOtherFlavour(context.Context) error { return nil }

// Remove removes weir's tables, the tables of trials (see Lacks) that a killed agent may have left, and weir's rules
// in the chains FORWARD of iptables-nft. Then the backend enforces no policy any more. Remove leaves the rules in
// iptables-legacy alone, because the backend that the node uses instead keeps the same rules.
//
// Equivalent to: nft delete table ip weir; nft delete table ip6 weir
func (d *Driver) Remove(context.Context) error {
	d.have, d.knownAt = nil, 0
	errs := []error{d.removeAccepting()}
	for _, t := range tables {
		for _, chain := range []string{conf.ForwardChain, conf.InputChain, conf.PostroutingChain} {
			var b nftnl.Batch
			b.FlushChain(t, chain)
			_ = b.Commit() // an error means that the chain doesn't exist
		}
	}
	awaitPackets()
	for _, t := range tables {
		var b nftnl.Batch
		b.DeleteTable(t)
		if err := b.Commit(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove table %s: %w", t.Name, err))
		}
		endTrial(trialTable(t.Family))
	}
	return errors.Join(errs...)
}

// awaitPackets waits for packets that are on their way through weir's rules. A packet meets the rules that existed when
// it met its first rule, but finds the newest elements of sets. So the rules would drop the packet if its pod left the
// maps before the packet's look-up.
//
// The kernel's membarrier waits until all processors have finished the packets that they are handling (membarrier(2),
// MEMBARRIER_CMD_GLOBAL).
func awaitPackets() {
	const global = 1
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}

// closeAll is called if a ruleset could not be applied. In each family whose rules in the kernel don't check all
// packets, it drops all packets of the node's pods, also those of established connections. If weir's tables can't be
// read, it changes nothing.
//
// Equivalent to:
//
//	nft add table ip weir; nft add set ip weir weir-pods { type ipv4_addr; }
//	nft add element ip weir weir-pods { ADDRESS, … }
//	nft add chain ip weir WEIR-FORWARD { type filter hook forward priority mangle; }
//	nft flush chain ip weir WEIR-FORWARD
//	nft add rule ip weir WEIR-FORWARD ip saddr @weir-pods counter drop
//	nft add rule ip weir WEIR-FORWARD ip daddr @weir-pods counter drop
//	nft add rule ip weir WEIR-FORWARD iifname weir0 counter drop
//	nft add rule ip weir WEIR-FORWARD oifname weir0 counter drop
//	nft add rule ip weir WEIR-FORWARD ip saddr ADDRESS counter drop
//	nft add rule ip weir WEIR-FORWARD ip daddr ADDRESS counter drop
//
// The set has the addresses of all pods. The rules with an ADDRESS are for pods behind another plugin. WEIR-INPUT gets
// the same rules except the one with oifname. If the kernel refuses the set, the rules with the set are left out.
func (d *Driver) closeAll(ctx context.Context, want lowered) error {
	if d.have == nil {
		if err := d.Read(ctx); err != nil {
			return err
		}
	}
	have := *d.have
	d.have, d.knownAt = nil, 0
	var errs []error
	for _, f := range conf.Families {
		if want[f] == nil || want[f].stays() || have[f].stands(want[f]) {
			continue
		}
		err := closing(f, have[f], want[f], true).Commit()
		if err != nil {
			err = closing(f, have[f], want[f], false).Commit()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("close all pods: %w", err))
		}
	}
	return errors.Join(errs...)
}

func closing(f conf.Family, have kernelTable, want *table, sets bool) *nftnl.Batch {
	b, t := &nftnl.Batch{}, tables[f]
	if have.exists && have.mustBeMadeAnew(want) {
		b.DeleteTable(t)
	}
	b.AddTable(t, nftnl.WeirTableComment)
	var drops []rule
	pods, ok := want.find(f.Set(conf.PodsSet))
	if sets && ok {
		b.AddSet(t, pods.Set, nil)
		b.AddElements(t, pods.Set, pods.elements(), nil, false)
		for _, by := range []ruleset.Part{ruleset.Source, ruleset.Destination} {
			drops = append(drops, rule{Rule: ruleset.Rule{Sets: []ruleset.SetMatch{{Name: pods.Name, By: by}}}})
		}
	}
	for _, r := range accepted(want) { // accepted returns conditions that match every packet of a pod
		drops = append(drops, rule{Rule: r})
	}
	for _, c := range want.chains {
		if c.Hook == nil || c.Hook.Kind != "filter" {
			continue
		}
		b.AddChain(t, c.Chain)
		b.FlushChain(t, c.Name)
		for _, r := range drops {
			if r.Out != "" && c.Hook.Number == unix.NF_INET_LOCAL_IN { // packets to the node go out by no link
				continue
			}
			r.Action, r.Comment = ruleset.Drop, "weir: the kernel refuses the rules of the policies"
			written, _ := r.write(f)
			b.AddRule(t, c.Name, written, nil)
		}
	}
	return b
}
