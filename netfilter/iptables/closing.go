package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// KeepClosed protects the pods until a ruleset can be compiled. If a family's chains in the kernel are complete,
// KeepClosed only makes sure that the jumps to these chains are first. In a family with incomplete chains, it applies
// the given ruleset, which has no classes, so that the kernel drops all new connections of pods, except pods whose
// enforcement is off. It returns the families with incomplete chains.
func (d *Driver) KeepClosed(ctx context.Context, closed ruleset.Ruleset) (fell []conf.Family, err error) {
	if err := d.detect(ctx); err != nil {
		return nil, err
	}
	fell, err = d.putFirst(ctx, lower(closed))
	if len(fell) > 0 {
		_, applying := d.apply(ctx, closed, netfilter.All, fell)
		_ = d.keepForward(ctx, closed, fell)
		err = errors.Join(err, applying)
	}
	return fell, err
}

// Stands reports whether the kernel's chains that drop packets are complete, in each family of the ruleset. The jumps
// to these chains may be missing.
func (d *Driver) Stands(ctx context.Context, closed ruleset.Ruleset) (bool, error) {
	if err := d.detect(ctx); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	want := lower(closed)
	for _, f := range conf.Families {
		if want.has(f) && !d.readTable(ctx, f, checks, d.have).stands(f, want) {
			return false, nil
		}
	}
	return true, nil
}

// PutFirst puts the jumps to weir's chains first in the built-in chains of the table mangle. It works even if the table
// can't be read. It does nothing while the flavour is unknown. It changes nothing in a family whose chains are known to
// be incomplete.
func (d *Driver) PutFirst(ctx context.Context, want ruleset.Ruleset) error {
	if d.Flavour == "" {
		return nil
	}
	_, err := d.putFirst(ctx, lower(want))
	return err
}

// putFirst does what PutFirst does, and returns the families with incomplete chains.
func (d *Driver) putFirst(ctx context.Context, want *lowered) (fell []conf.Family, err error) {
	var p plan
	var why, failed []error
	defer func() {
		if len(failed) > 0 {
			err = errors.Join(append(failed, err)...)
		}
	}()
	reading, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	for _, f := range conf.Families {
		d.wanted[f] = want.has(f)
		if !d.wanted[f] {
			continue
		}
		read := tables{checks: d.readTable(reading, f, checks, d.have)}
		if _, err := read.wake(f); err != nil {
			failed = append(failed, err)
			continue
		}
		mangle := read[checks]
		hidden := false
		if u := mangle.unknown; u != nil {
			why = append(why, u.why)
			hidden = u.seen == nil
		}
		if !hidden && !mangle.stands(f, want) {
			fell = append(fell, f)
			continue
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
			p.restore[f], p.tables[f] = commands, []string{checks}
		}
	}
	if err := d.changeRules(ctx, p); err != nil {
		for _, b := range p.blind { // these tables can't be read, so their chains may be incomplete
			fell = append(fell, b.family)
		}
		return fell, err
	}
	for f, commands := range p.restore {
		if len(why) == 0 || commands == "" {
			continue
		}
		if err := deleteCopies(d.reader, conf.Family(f), checks); err != nil {
			return fell, err
		}
	}
	if len(why) > 0 {
		return fell, &netfilter.UnknownError{Why: why}
	}
	return fell, nil
}

// closings returns one or two lists of rules that drop the packets of pods. The caller tries the lists in order. The
// last list needs no sets, so it works even if the kernel refuses sets: it drops packets by the link weir0, and by the
// addresses of chained pods. The first list also drops the packets of all addresses in the set of all pods. The first
// list is left out if this set is missing, or if another program has made the set: while weir's rules used such a set,
// the agent could not replace it.
func closings(f conf.Family, have state, want *lowered) [][]string {
	pods, chained := f.Set(conf.PodsSet), ruleset.Entries{}
	for _, s := range want.sets {
		if s.Name == f.Set(conf.ChainedSet) {
			chained = s.Entries
		}
	}
	var drops []string
	for _, r := range netfilter.Accepted(chained) {
		r.Action = ruleset.Drop
		drops = append(drops, ruleText(r, f))
	}
	if have.sets[pods].kind != ruleset.Addresses {
		return [][]string{drops}
	}
	bySet := []string{"-m set --match-set " + pods + " src -j DROP", "-m set --match-set " + pods + " dst -j DROP"}
	return [][]string{append(bySet, drops...), drops}
}

// closeAll is called if a ruleset could not be applied. If a family's chains that drop packets are complete, closeAll
// only makes sure that the jumps to these chains are first. Otherwise it drops all packets of the node's pods in this
// family, also those of established connections. closeAll changes nothing in a family whose table mangle can't be read.
//
// The drops are equivalent to the following commands, and to the same commands with WEIR-INPUT and INPUT. ADDRESS is
// the address of a chained pod. If the kernel refuses sets, the two rules with --match-set are left out.
//
//	iptables -t mangle -N WEIR-FORWARD; iptables -t mangle -I FORWARD -j WEIR-FORWARD
//	iptables -t mangle -A WEIR-FORWARD -m set --match-set weir-pods src -j DROP
//	iptables -t mangle -A WEIR-FORWARD -m set --match-set weir-pods dst -j DROP
//	iptables -t mangle -A WEIR-FORWARD -i weir0 -j DROP
//	iptables -t mangle -A WEIR-FORWARD -o weir0 -j DROP
//	iptables -t mangle -A WEIR-FORWARD -s ADDRESS -j DROP
//	iptables -t mangle -A WEIR-FORWARD -d ADDRESS -j DROP
func (d *Driver) closeAll(ctx context.Context, have state, want *lowered) error {
	var errs []error
	for _, f := range conf.Families {
		mangle := have.tables[f][checks]
		if !want.has(f) || mangle.unknown != nil { // no rules are wanted, or the table's rules are unknown
			continue
		}
		attempts := [][]string{nil}
		if !mangle.stands(f, want) {
			attempts = closings(f, have, want)
		}
		var err error
		for _, drops := range attempts {
			if err = d.restore(ctx, closing(f, mangle, want, drops)); err == nil {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("close all pods: %w", err))
		}
	}
	return errors.Join(errs...)
}

func closing(f conf.Family, mangle table, want *lowered, drops []string) (commands [len(conf.Families)]string) {
	var lines []string
	for _, j := range want.jumps {
		if j.family != f || j.table != checks || !j.first {
			continue
		}
		if drops != nil && !slices.Equal(mangle.rules[j.to], drops) {
			lines = append(lines, ":"+j.to+" - [0:0]") // creates the chain, or empties it
			for _, rule := range drops {
				lines = append(lines, "-A "+j.to+" "+rule)
			}
		}
		if rules := mangle.rules[j.chain]; len(rules) == 0 || split(rules[0]).target != j.to {
			lines = append(lines, "-I "+j.chain+" 1 -j "+j.to)
		}
	}
	if len(lines) > 0 {
		commands[f] = "*" + checks + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	}
	return commands
}
