// Package kernel owns weir's sets and rules in the kernel: it lists what is there, compares it with a policy.Ruleset,
// and applies the difference. Nothing is flushed first, so applying the same ruleset again changes nothing, whoever
// applied it before. It touches nothing whose name doesn't begin with weir or WEIR.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ipset"
)

// Driver brings rulesets into the kernel. It is not safe for concurrent use.
type Driver struct {
	Flavour Flavour
	sets    *ipset.Handle
	// have is what the kernel held after the last change; nil if it must be read anew.
	have *state
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
func (d *Driver) Close() { d.sets.Close() }

// Result of an Apply.
type Result struct {
	// Changed says that the kernel did not hold the ruleset already; sets that nobody uses don't count.
	Changed bool
	// Left are sets that nobody wants and that the kernel still holds for a rule that it is deleting; the next Apply
	// tries again.
	Left []string
}

// Verify says how much of the kernel's state Apply reads first. What it doesn't read is taken to be what the last Apply
// left there.
type Verify int

const (
	// Trust reads nothing.
	Trust Verify = iota
	// Rules reads the chains that drop: quick, but blind to the sets.
	Rules
	// All reads everything.
	All
)

// Apply makes the kernel hold the ruleset. After an error the kernel holds some of the old state and some of the new, each of which closes
// what it should; applying again goes on from there.
func (d *Driver) Apply(ctx context.Context, want policy.Ruleset, verify Verify) (Result, error) {
	var r Result
	if err := d.look(ctx, verify); err != nil {
		return r, err
	}
	p := makePlan(*d.have, want)
	if p.empty() {
		return r, nil
	}
	r.Changed = len(p.create)+len(p.before)+len(p.after) > 0 || p.restore != ""
	have := *d.have
	d.have = nil // until all is done
	left, err := d.carryOut(ctx, p)
	if err != nil {
		return r, err
	}
	next := have.after(want, left)
	d.have = &next
	r.Left = left
	return r, nil
}

func (d *Driver) look(ctx context.Context, verify Verify) error {
	switch {
	case verify == All || d.have == nil:
		have, err := d.read(ctx)
		if err != nil {
			return err
		}
		d.have = &have
	case verify == Rules:
		mangle, err := d.readTable(ctx, "mangle")
		if err != nil {
			return err
		}
		d.have.tables["mangle"] = mangle
	}
	return nil
}

func (d *Driver) carryOut(ctx context.Context, p plan) (left []string, err error) {
	for _, s := range p.create {
		if err := d.sets.Create(s.Name, string(s.Type)); err != nil {
			return nil, err
		}
		for _, e := range s.Entries {
			if err := d.sets.Add(s.Name, ipset.Entry(e)); err != nil {
				return nil, err
			}
		}
	}
	if err := d.change(p.before); err != nil {
		return nil, err
	}
	if p.restore != "" {
		if err := d.Flavour.restore(ctx, p.restore); err != nil {
			return nil, err
		}
	}
	if err := d.change(p.after); err != nil {
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

func (d *Driver) change(changes []change) error {
	for _, c := range changes {
		var err error
		if c.del {
			err = d.sets.Del(c.set, c.Prefix)
		} else {
			err = d.sets.Add(c.set, ipset.Entry(c.Entry))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read lists weir's sets and the tables.
func (d *Driver) read(ctx context.Context) (state, error) {
	s := state{sets: map[string]set{}, tables: map[string]table{}}
	names, err := d.sets.Names()
	if err != nil {
		return s, err
	}
	for _, name := range names {
		got, err := d.sets.List(name)
		if errors.Is(err, ipset.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, err
		}
		entries := make(map[netip.Prefix]string, len(got.Entries))
		for _, e := range got.Entries {
			entries[e.Prefix] = e.Comment
		}
		s.sets[name] = set{policy.SetType(got.Type), entries}
	}
	for _, name := range tablesUsed {
		if s.tables[name], err = d.readTable(ctx, name); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (d *Driver) readTable(ctx context.Context, name string) (table, error) {
	out, err := d.Flavour.save(ctx, name)
	if err != nil {
		return nil, err
	}
	t := parseSave(out)
	// A table that nobody has used yet is not printed, but has its built-in chains.
	for _, chain := range builtin[name] {
		if _, ok := t[chain]; !ok {
			t[chain] = nil
		}
	}
	return t, nil
}

// builtin chains that weir has jumps in.
var builtin = map[string][]string{"mangle": {"FORWARD", "INPUT"}, "filter": {"FORWARD"}, "nat": {"POSTROUTING"}}

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
	names, err := d.sets.Names()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(slices.Values(names)) {
		if err := d.destroyUnused(ctx, name); err != nil {
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
