// Package iptables owns weir's sets and rules in the kernel: it lists what is there, compares it with a policy.Ruleset,
// and applies the difference. Nothing is flushed first, so applying the same ruleset again changes nothing, whoever
// applied it before. It touches nothing whose name doesn't begin with weir or WEIR.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

// Driver brings rulesets into the kernel. It is not safe for concurrent use.
type Driver struct {
	// Flavour of the node's iptables; empty while it isn't known.
	Flavour Flavour
	sets    *ipset.Handle
	// have is what the kernel held after the last change; nil if it must be read anew.
	have *state
	// fresh says that have was read, and nothing was changed since.
	fresh bool
	// wanted says for which families Apply was last to bring something into the kernel.
	wanted [len(conf.Families)]bool
	// readAt is the generation of nf_tables at which the tables were read; 0: unknown.
	readAt uint32
	own    ownChanges
	// ahead are the programs that wait for the next change of rules.
	ahead [len(conf.Families)]*restorer
	// suspects are rules of policies that the kernel has refused before: they are tried before anything is changed for
	// them.
	suspects map[ruleset.Refusal]bool
}

// New connects to the kernel and finds out which iptables the node uses. If it can't find out, the first method that
// needs to know tries again, and returns the error.
func New(ctx context.Context) (*Driver, error) {
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	d := &Driver{sets: sets, suspects: map[ruleset.Refusal]bool{}}
	_ = d.detect(ctx)
	return d, nil
}

// detect finds out which iptables the node uses, once.
func (d *Driver) detect(ctx context.Context) (err error) {
	if d.Flavour == "" {
		d.Flavour, err = Detect(ctx)
	}
	return err
}

// Close disconnects; what was applied stays.
func (d *Driver) Close() {
	for _, r := range d.ahead {
		r.dismiss()
	}
	d.sets.Close()
}

// Apply makes the kernel hold the ruleset. After an error the kernel holds some of the old state and some of the new,
// each of which closes what it should; applying again goes on from there. After an UnknownError it holds the ruleset,
// as far as can be known. After a RefusedError it is enough to leave out what the kernel refuses.
func (d *Driver) Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error) {
	return d.apply(ctx, lower(want), verify)
}

func (d *Driver) apply(ctx context.Context, want *lowered, verify netfilter.Verify) (netfilter.Result, error) {
	var r netfilter.Result
	if err := d.look(ctx, want, verify); err != nil {
		return r, err
	}
	for _, f := range conf.Families {
		woken, err := d.have.tables[f].wake(f)
		if err != nil {
			return r, err
		}
		r.Rules = r.Rules || woken
	}
	r.Changed, r.Closes = r.Rules, r.Rules
	p := makePlan(*d.have, want)
	if d.fresh {
		for _, c := range p.strays {
			r.Strays = append(r.Strays, c.Prefix.Addr())
		}
	}
	d.fresh = false
	have := *d.have
	var refused ruleset.Refused
	if !p.empty() {
		before, _ := generation()
		if err := d.prepare(ctx, p, have, want); err != nil {
			if !errors.As(err, new(*netfilter.RefusedError)) { // after which it is known what the kernel holds
				d.have = nil
				err = errors.Join(err, d.closeAll(ctx, have, want))
			}
			return r, err
		}
		r.Closes, r.Rules = r.Closes || p.closes, r.Rules || p.restores()
		d.have = nil // until all is done
		var err error
		r.Left, refused, err = d.carryOut(ctx, p, have, want)
		r.Changed = len(p.create)+len(p.before)+len(p.after)-len(refused) > 0 || r.Rules
		if err != nil && !errors.As(err, new(*netfilter.RefusedError)) {
			err = errors.Join(err, d.closeAll(ctx, have, want))
		}
		if err != nil {
			return r, err
		}
		if err := have.see(want, p, before); err != nil {
			return r, err
		}
	}
	next := have.after(p, want, r.Left)
	for e := range refused {
		delete(next.sets[e.Set].entries, e.Element)
	}
	d.have = &next
	if len(refused) > 0 {
		return r, &netfilter.RefusedError{Refused: want.raise(refused)}
	}
	var why []error
	for _, f := range conf.Families {
		why = append(why, next.tables[f].unknown()...)
	}
	if len(why) > 0 {
		return r, &netfilter.UnknownError{Why: why}
	}
	return r, nil
}

// KeepClosed is for when nobody knows yet what the kernel should hold. If weir's chains stand, they stay as they are,
// and only get back their place before everybody else's rules. If one is gone or was flushed, so is what it forbade:
// the kernel then gets the ruleset, in which no pod is in any class, and KeepClosed says so.
func (d *Driver) KeepClosed(ctx context.Context, closed ruleset.Ruleset) (bool, error) {
	if err := d.detect(ctx); err != nil {
		return false, err
	}
	want := lower(closed)
	stand, err := d.putFirst(ctx, want)
	if !stand {
		_, err := d.apply(ctx, want, netfilter.All)
		return true, err
	}
	return false, err
}

// PutFirst is for when it can't be read what the kernel holds: weir's rules get back their place before everybody
// else's, and nothing else is changed.
func (d *Driver) PutFirst(ctx context.Context, want ruleset.Ruleset) error {
	if d.Flavour == "" {
		return nil
	}
	_, err := d.putFirst(ctx, lower(want))
	return err
}

// putFirst puts weir's rules into their places in the table that drops, unless one of weir's chains is gone or was
// flushed. Where nothing tells of the table, they stand if rules that lead to them can be made.
func (d *Driver) putFirst(ctx context.Context, want *lowered) (stand bool, err error) {
	var p plan
	var why []error
	reading, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	for _, f := range conf.Families {
		d.wanted[f] = want.has(f)
		if !d.wanted[f] {
			continue
		}
		read := tables{checks: d.readTable(reading, f, checks, d.have)}
		if _, err := read.wake(f); err != nil {
			return true, err
		}
		mangle := read[checks]
		hidden := false
		if u := mangle.unknown; u != nil {
			why = append(why, u.why)
			hidden = u.seen == nil
		}
		if !hidden && !mangle.stands(f, want) {
			return false, nil
		}
		places := jumps(f, checks, mangle, want)
		if len(places) == 0 {
			continue
		}
		d.have = nil
		commands := "*" + checks + "\n" + strings.Join(places, "\n") + "\nCOMMIT\n"
		if hidden {
			p.blind = append(p.blind, blind{f, commands})
		} else {
			p.restore[f] = commands
		}
	}
	if err := d.changeRules(ctx, p); err != nil {
		return len(p.blind) == 0, err
	}
	for f, commands := range p.restore {
		if len(why) == 0 || commands == "" {
			continue
		}
		if err := deleteCopies(conf.Family(f), checks); err != nil {
			return true, err
		}
	}
	if len(why) > 0 {
		return true, &netfilter.UnknownError{Why: why}
	}
	return true, nil
}

// changeRules carries out the plan's commands. Those for a table of which nothing is known are tried with weir's rules
// deleted first, so that there is one copy of each, and without that if there is none to be deleted.
func (d *Driver) changeRules(ctx context.Context, p plan) error {
	if err := d.restore(ctx, p.restore); err != nil {
		return err
	}
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

// prepare takes the steps of the plan after which no packet goes another way: it makes sets that no rule uses yet. have
// is what the kernel holds, and is kept so.
func (d *Driver) prepare(ctx context.Context, p plan, have state, want *lowered) error {
	refused := ruleset.Refused{}
	for _, s := range p.create {
		made, err := d.make(s, refused)
		if err != nil {
			return err
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
	if err := changeSets(p.before, want, refused); err != nil {
		return nil, nil, err
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
	for _, name := range p.destroy {
		err := d.sets.Destroy(name)
		// nf_tables frees deleted rules, and with them their hold on the set, after the transaction is over.
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			left = append(left, name)
		} else if err != nil {
			return nil, nil, err
		}
	}
	return left, refused, nil
}

// restore carries out the families' commands, one after the other: both at once take longer, as the kernel lets only
// one change its tables. It notes between which generations of the rules that was: it makes one for each table.
func (d *Driver) restore(ctx context.Context, commands [len(conf.Families)]string) error {
	if commands == [len(conf.Families)]string{} {
		return nil
	}
	before, err := generation() // without nf_tables there is none
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
	after, errAfter := generation()
	if err == nil && errAfter == nil {
		d.own.note(before, after, tables)
	}
	return nil
}

// restoreFamily carries out the family's commands, and has the program for the next ones started ahead.
func (d *Driver) restoreFamily(ctx context.Context, f conf.Family, commands string) error {
	r := d.ahead[f]
	d.ahead[f] = nil
	if !r.waits(d.Flavour) {
		r.dismiss()
		var err error
		if r, err = startRestorer(d.Flavour, f); err != nil {
			return err
		}
	}
	if err := r.carryOut(ctx, commands); err != nil {
		return err
	}
	d.ahead[f], _ = startRestorer(d.Flavour, f) // if that fails, the next call says so
	return nil
}

// Knows reports whether a generation that Watch called concerned is accounted for: the tables were read at it or
// after it, or the driver made it. It is called once for each such generation, in order.
func (d *Driver) Knows(generation uint32) bool {
	return generation != 0 && ((d.readAt != 0 && int32(generation-d.readAt) <= 0) || d.own.made(generation))
}

func entry(e ruleset.Entry) ipset.Entry {
	return ipset.Entry{Prefix: e.Prefix, Proto: string(e.Proto), Port: e.Port, Link: e.Link, Comment: e.Comment}
}

// CleanOtherFlavour removes what weir may have left in the flavour that the node doesn't use (any more). It is called
// after an Apply, so that something stands all the time.
func (d *Driver) CleanOtherFlavour(ctx context.Context) error {
	return d.Flavour.other().clean(ctx)
}

// Remove takes all of weir's sets and rules out of the kernel. The pods are open from then on.
func (d *Driver) Remove(ctx context.Context) error {
	d.have = nil
	if err := errors.Join(NFT.clean(ctx), Legacy.clean(ctx)); err != nil {
		return err
	}
	headers, err := d.sets.Headers()
	if err != nil {
		return err
	}
	for _, h := range headers {
		if err := d.destroyUnused(ctx, h.Name); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

// destroyUnused waits for the kernel to let go of the set: nf_tables frees deleted rules some time after the
// transaction, and tells nobody when.
func (d *Driver) destroyUnused(ctx context.Context, name string) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := d.sets.Destroy(name)
		if !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}
