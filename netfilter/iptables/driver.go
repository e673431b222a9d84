// Package iptables is the backend iptables. It compares weir's sets and rules in the kernel with a ruleset.Ruleset, and
// applies the difference.
//
// Invariants:
//   - No step of a change allows a packet that both the old and the new state deny. So no change begins with a flush.
//   - If the same ruleset is applied again, nothing changes.
//   - Other programs' sets, chains and rules stay as they are, with two exceptions. The package replaces a set of
//     another program that has the name of one of weir's sets. It also replaces a built-in chain that is at a wrong
//     hook, if other programs have no rules in the chain.
//   - The names of weir's sets and chains begin with weir- or WEIR-. In other chains, weir's rules jump to weir's
//     chains or have weir's comment.
//   - If a table can't be read, weir's rules are written to this table all the same. The caller gets an UnknownError.
package iptables

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// Driver applies rulesets to the kernel. Only Inspect, Watch and Sets may be called from several goroutines.
type Driver struct {
	Flavour  Flavour
	detected atomic.Pointer[Flavour]
	sets     *ipset.Handle
	have     *state
	// settled is the last applied ruleset. It is nil if the kernel may have other rules or sets.
	settled *ruleset.Ruleset
	left    []string
	refresh *refresh // the parts of the kernel's state that a Refresh has still to read; nil if no Refresh is under way
	fresh   bool
	// pods is true for a family if the family's set of all pods may have entries (HasPods).
	pods     [len(conf.Families)]bool
	lowering lowering
	// support says for each family whether the rules can find a pod's class by a number in the pod's set entry. This
	// needs support by the kernel and by iptables (see numbers.go).
	support  [len(conf.Families)]support
	byNumber [len(conf.Families)]atomic.Bool // true if the last ruleset was written with numbers of classes (numbers.go)
	wanted   [len(conf.Families)]bool
	nat      [len(conf.Families)]natSeen
	known    nftnl.KnownChanges
	// ahead has an iptables-restore process for each family. The process is started in advance, and waits for commands.
	ahead [len(conf.Families)]*restorer
	// spent has processes that have carried out their commands. The function release tells them to end.
	spent []*restorer
	// released has processes that the driver no longer needs. If such a process fails, its error is in late until Apply
	// reports it.
	released []*restorer
	late     []error
	forward  LegacyForward
	reader   *nftnl.Reader // stays open: when a netfilter socket is closed, the kernel delays changes (nftnl.Sender)
	// suspects are rules that the kernel has refused before. Before the driver uses them again, it tries them in a
	// chain that no packet enters.
	suspects map[ruleset.Refusal]bool
}

// New connects to the kernel, and detects which flavour of iptables the node uses. If the detection fails, New returns
// no error: later calls of the driver try again.
func New(ctx context.Context) (*Driver, error) {
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	d := newDriver(sets)
	_ = d.detect(ctx)
	return d, nil
}

func newDriver(sets *ipset.Handle) *Driver {
	return &Driver{sets: sets, suspects: map[ruleset.Refusal]bool{}, reader: nftnl.NewReader()}
}

// Close ends the driver's connections to the kernel. Rules and sets stay.
func (d *Driver) Close() {
	for _, r := range d.ahead {
		r.dismiss()
	}
	d.reader.Close()
	d.sets.Close()
}

// Apply makes the kernel's rules and sets equal to the ruleset. At no moment does the kernel allow a packet that both
// the old and the new state deny.
//
//   - An UnknownError says that some tables can't be read. weir's rules were written to these tables all the same.
//   - After a RefusedError, the caller must leave the refused parts out of the next ruleset.
//   - If a change fails with another error, Apply tries to close the pods (see closeAll) of each family whose chains
//     that drop packets are incomplete.
func (d *Driver) Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error) {
	if verify == netfilter.Trust {
		if r, done, err := d.applyEntries(want); done {
			r.Notes = d.forward.Notes()
			return r, err
		}
	}
	r, err := d.apply(ctx, want, verify, conf.Families[:])
	if err == nil || errors.As(err, new(*netfilter.UnknownError)) {
		repaired := d.keepForward(ctx, want, conf.Families[:])
		r.Changed, r.Rules = r.Changed || repaired, r.Rules || repaired
		r.Late, d.late = d.late, nil
	}
	r.Notes = d.forward.Notes()
	d.settle(want, r, err)
	return r, err
}

// apply changes only the sets and rules of the given families. If these are not all families, the driver treats the
// whole state of the kernel as unknown afterwards.
func (d *Driver) apply(ctx context.Context, rules ruleset.Ruleset, verify netfilter.Verify, families []conf.Family) (
	r netfilter.Result, err error,
) {
	d.settled = nil
	if err := d.look(ctx, rules, verify); err != nil {
		return r, err
	}
	for _, f := range families {
		woken, err := d.have.tables[f].wake(f)
		if err != nil {
			return r, err
		}
		r.Rules = r.Rules || woken
	}
	r.Changed, r.Closes = r.Rules, r.Rules
	want, have := d.lower(ctx, rules), *d.have
	part := len(families) < len(conf.Families)
	if part {
		want, have = want.only(families), have.only(families, want)
	}
	p := makePlan(have, want)
	if d.fresh {
		for _, c := range p.strays {
			r.Strays = append(r.Strays, c.Prefix.Addr())
		}
	}
	d.fresh = false
	var refused ruleset.Refused
	if !p.empty() {
		before, _ := d.reader.Generation()
		if err := d.prepare(ctx, p, have, want); err != nil {
			if !errors.As(err, new(*netfilter.RefusedError)) { // after a RefusedError, the kernel's state is known
				d.have = nil
				err = errors.Join(err, d.closeAll(ctx, have, want))
			}
			return r, err
		}
		r.Closes, r.Rules = r.Closes || p.closes, r.Rules || p.restores()
		d.have = nil // the kernel's state is unknown until all steps are done
		r.Left, refused, err = d.carryOut(ctx, p, have, want)
		r.Changed = len(p.create)+len(p.before)+len(p.across)+len(p.after)-len(refused) > 0 || r.Rules
		if err != nil && !errors.As(err, new(*netfilter.RefusedError)) {
			err = errors.Join(err, d.closeAll(ctx, have, want))
		}
		if err != nil {
			return r, err
		}
		if err := d.rereadUnknown(have, want, p, before); err != nil {
			return r, err
		}
	}
	next := have.after(p, want, r.Left)
	for e := range refused {
		had := next.sets[e.Set]
		had.entries = had.entries.Without(e.Element)
		next.sets[e.Set] = had
	}
	if d.have = &next; part {
		d.have = nil
	}
	if len(refused) > 0 {
		return r, &netfilter.RefusedError{Refused: want.raise(refused)}
	}
	var why []error
	for _, f := range conf.Families {
		why = append(why, next.tables[f].unknown()...)
	}
	if len(why) > 0 {
		err = &netfilter.UnknownError{Why: why}
	}
	return r, err
}

// changeRules carries out the plan's commands for iptables-restore. In a table that can't be read, it first tries to
// delete weir's rules, because the commands would add them a second time.
func (d *Driver) changeRules(ctx context.Context, p plan) error {
	if err := d.restore(ctx, p.restore); err != nil {
		return err
	}
	defer d.release()
	for _, b := range p.blind {
		if d.restoreFamily(ctx, b.family, b.commands) == nil {
			continue
		}
		if err := d.restoreFamily(ctx, b.family, b.withoutDeletions()); err != nil {
			return err
		}
	}
	return nil
}

// prepare creates the plan's new sets. If the kernel has refused some of the new rules before (suspects), prepare tries
// the new rules in a chain that no packet enters. It returns a RefusedError for the parts that the kernel refuses.
func (d *Driver) prepare(ctx context.Context, p plan, have state, want *lowered) error {
	refused := ruleset.Refused{}
	for _, s := range p.create {
		var foreign error
		if _, ok := have.sets[s.Name]; ok {
			foreign = d.destroyForeign(s.Name)
		}
		made, err := d.makeSet(s, refused)
		if err != nil {
			return errors.Join(foreign, err)
		}
		if made != nil {
			have.sets[s.Name] = *made
		}
	}
	for _, f := range conf.Families {
		if rules := newRules(f, have, want); p.restore[f] != "" && d.suspicious(f, rules) {
			maps.Copy(refused, d.refusedAmong(ctx, f, rules))
		}
	}
	if len(refused) > 0 {
		return &netfilter.RefusedError{Refused: want.raise(refused)}
	}
	return nil
}

func (d *Driver) carryOut(ctx context.Context, p plan, have state, want *lowered) (
	left []string, refused ruleset.Refused, err error,
) {
	refused = ruleset.Refused{}
	for _, changes := range [][]change{p.before, p.across} {
		if err := changeSets(changes, want, refused); err != nil {
			return nil, nil, err
		}
	}
	if err := d.changeRules(ctx, p); err != nil {
		var e *restoreError
		if !errors.As(err, &e) {
			return nil, nil, err
		}
		if rules := d.refusedAmong(ctx, e.family, newRules(e.family, have, want)); len(rules) > 0 {
			maps.Copy(refused, rules)
			return nil, nil, &netfilter.RefusedError{Refused: want.raise(refused)}
		}
		return nil, nil, err
	}
	if err := changeSets(p.after, want, refused); err != nil {
		return nil, nil, err
	}
	left, err = d.destroy(p.destroy, have, p.changes())
	return left, refused, err
}

// restore carries out the commands of the families one after the other, because the kernel lets only one process change
// its tables at a time.
func (d *Driver) restore(ctx context.Context, commands [len(conf.Families)]string) error {
	if commands == [len(conf.Families)]string{} {
		return nil
	}
	defer d.release()
	before, err := d.reader.Generation() // fails if the kernel has no nf_tables
	tables := 0
	for _, f := range conf.Families {
		if commands[f] == "" {
			continue
		}
		if err := d.restoreFamily(ctx, f, commands[f]); err != nil {
			return err
		}
		tables += strings.Count(commands[f], "COMMIT\n")
	}
	after, errAfter := d.reader.Generation()
	if err == nil && errAfter == nil {
		d.known.Add(before, after, tables)
	}
	return nil
}

// restoreFamily carries out one family's commands. Then it starts the process for the next change in advance.
func (d *Driver) restoreFamily(ctx context.Context, f conf.Family, commands string) error {
	r := d.ahead[f]
	d.ahead[f] = nil
	if r == nil || r.flavour != d.Flavour || !r.runs() {
		r.dismiss()
		var err error
		if r, err = startRestorer(d.Flavour, f, lockWait); err != nil {
			return err
		}
	}
	if err := r.change(ctx, commands); err != nil {
		return err
	}
	d.spent = append(d.spent, r)
	d.ahead[f], _ = startRestorer(d.Flavour, f, lockWait) // if this fails, the next call starts the process
	return nil
}

// CleanOtherFlavour removes weir's rules from the flavour of iptables that the node doesn't use. On a node that uses
// iptables-legacy, it also removes the rules of LegacyForward: weir's jump in the same chain makes these rules
// unnecessary. The caller must call Apply first, so that weir's rules are always in force.
func (d *Driver) CleanOtherFlavour(ctx context.Context) error {
	err := d.Flavour.other().clean(ctx)
	if d.Flavour == Legacy {
		err = errors.Join(err, d.forward.Remove(ctx))
	}
	return err
}
