// Package kernel owns weir's sets and rules in the kernel: it lists what is there, compares it with a policy.Ruleset,
// and applies the difference. Nothing is flushed first, so applying the same ruleset again changes nothing, whoever
// applied it before. It touches nothing whose name doesn't begin with weir or WEIR.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ipset"
)

// Driver brings rulesets into the kernel. It is not safe for concurrent use.
type Driver struct {
	Flavour Flavour
	sets    *ipset.Handle
	// have is what the kernel held after the last change; nil if it must be read anew.
	have *state
	// readAt is the generation of nf_tables at which the tables were read; 0: unknown.
	readAt uint32
	own    ownChanges
	// ahead are the programs that wait for the next change of rules.
	ahead [len(conf.Families)]*restorer
}

// Open finds out which iptables the node uses and connects to the kernel.
func Open(ctx context.Context) (*Driver, error) {
	flavour, err := Detect(ctx)
	if err != nil {
		return nil, err
	}
	sets, err := ipset.Open()
	if err != nil {
		return nil, err
	}
	return &Driver{Flavour: flavour, sets: sets}, nil
}

// Close disconnects; what was applied stays.
func (d *Driver) Close() {
	for _, r := range d.ahead {
		r.dismiss()
	}
	d.sets.Close()
}

// Result of an Apply.
type Result struct {
	// Changed says that the kernel did not hold the ruleset already; sets that nobody uses don't count.
	Changed bool
	// Closes says that what was let through before may not be any more; without it, a change only opens, or is about pods
	// that came or ended, which have no connections.
	Closes bool
	// Left are sets that nobody wants and that the kernel still holds for a rule that it is deleting; the next Apply
	// tries again.
	Left []string
}

// Apply makes the kernel hold the ruleset. After an error the kernel holds some of the old state and some of the new, each of which closes
// what it should; applying again goes on from there.
func (d *Driver) Apply(ctx context.Context, want policy.Ruleset, verify Verify) (Result, error) {
	var r Result
	if err := d.look(ctx, want, verify); err != nil {
		return r, err
	}
	p := makePlan(*d.have, want)
	if p.empty() {
		return r, nil
	}
	r.Closes = p.closes
	r.Changed = len(p.create)+len(p.before)+len(p.after) > 0 || p.restores()
	have := *d.have
	d.have = nil // until all is done
	left, err := d.carryOut(ctx, p)
	if err != nil {
		return r, err
	}
	next := have.after(p, want, left)
	d.have = &next
	r.Left = left
	return r, nil
}

// KeepClosed is for when nobody knows yet what the kernel should hold. If weir's chains stand, they stay as they are, and
// only get back their place before everybody else's rules. If one is gone or was flushed, so is what it forbade: the
// kernel then gets the ruleset, in which no pod is in any class, and KeepClosed says so.
func (d *Driver) KeepClosed(ctx context.Context, closed policy.Ruleset) (bool, error) {
	var commands [len(conf.Families)]string
	for _, f := range conf.Families {
		if !closed.Has(f) {
			continue
		}
		mangle, err := d.readTable(ctx, f, "mangle")
		if err != nil {
			return false, err
		}
		if !mangle.stands(f, closed) {
			_, err := d.Apply(ctx, closed, All)
			return true, err
		}
		if places := jumps(f, "mangle", mangle, closed); len(places) > 0 {
			d.have = nil
			commands[f] = "*mangle\n" + strings.Join(places, "\n") + "\nCOMMIT\n"
		}
	}
	return false, d.restore(ctx, commands)
}

func (d *Driver) carryOut(ctx context.Context, p plan) (left []string, err error) {
	for _, s := range p.create {
		if err := d.sets.Create(ipset.Header{Name: s.Name, Type: string(s.Type), Family: s.Family}); err != nil {
			return nil, err
		}
		entries := make([]ipset.Change, 0, len(s.Entries))
		for _, e := range s.Entries {
			entries = append(entries, ipset.Change{Set: s.Name, Entry: entry(e)})
		}
		if err := ipset.Apply(entries...); err != nil {
			return nil, err
		}
	}
	if err := changeSets(p.before); err != nil {
		return nil, err
	}
	if err := d.restore(ctx, p.restore); err != nil {
		return nil, err
	}
	if err := changeSets(p.after); err != nil {
		return nil, err
	}
	for _, name := range p.destroy {
		err := d.sets.Destroy(name)
		// nf_tables frees deleted rules, and with them their hold on the set, after the transaction is over.
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			left = append(left, name)
		} else if err != nil {
			return nil, err
		}
	}
	return left, nil
}

// restore carries out the families' commands, one after the other: both at once take longer, as the kernel lets only one
// change its tables. It notes between which generations of the rules that was: it makes one for each table.
func (d *Driver) restore(ctx context.Context, commands [len(conf.Families)]string) error {
	if commands == [len(conf.Families)]string{} {
		return nil
	}
	before, err := Generation() // without nf_tables there is none
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
	after, errAfter := Generation()
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

// Knows says whether the tables of that generation, of which Watch has said that it changed something where weir has its
// own, have been read since, or were the driver's own making: then nobody else's change is in it that isn't known. It is
// asked about each in turn.
func (d *Driver) Knows(generation uint32) bool {
	return generation != 0 && ((d.readAt != 0 && int32(generation-d.readAt) <= 0) || d.own.made(generation))
}

func changeSets(changes []change) error {
	all := make([]ipset.Change, 0, len(changes))
	for _, c := range changes {
		all = append(all, ipset.Change{Set: c.set, Entry: entry(c.Entry), Out: c.del})
	}
	return ipset.Apply(all...)
}

func entry(e policy.Entry) ipset.Entry {
	return ipset.Entry{Prefix: e.Prefix, Proto: string(e.Proto), Port: e.Port, Comment: e.Comment}
}

// CleanOtherFlavour removes what weir may have left in the flavour that the node doesn't use (any more). It is called
// after an Apply, so that something stands all the time.
func (d *Driver) CleanOtherFlavour(ctx context.Context) error {
	return d.Flavour.other().clean(ctx)
}

// Remove takes all of weir's sets and rules out of the kernel. The pods are open from then on.
func (d *Driver) Remove(ctx context.Context) error {
	d.have = nil
	if err := errors.Join(d.Flavour.clean(ctx), d.Flavour.other().clean(ctx)); err != nil {
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
