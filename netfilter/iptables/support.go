package iptables

import (
	"context"
	"maps"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

// support says whether the kernel and iptables support numbers of classes (see numbers.go) in a family. Numbers need
// ipset's option skbinfo, and the target SET with the option --map-set (Linux 3.19).
type support int

const (
	untried support = iota
	supported
	unsupported
)

func (d *Driver) lower(ctx context.Context, r ruleset.Ruleset) *lowered {
	var n numbers
	for _, f := range conf.Families {
		if r.Has(f) && d.supports(ctx, f) {
			n[f] = d.lowering.numbers(d.have, f, r)
		}
		d.byNumber[f].Store(n[f] != nil)
	}
	return d.lowering.lower(r, n)
}

// supports reports whether the kernel and iptables support numbers of classes (see numbers.go) in the family. It makes
// trials until a trial has a clear result, and remembers this result. If the kernel already has a set whose entries
// have such numbers, supports makes no trial, and returns true.
//
// Equivalent to:
//
//	ipset create weir-trial hash:ip skbinfo
//	iptables -t mangle -N WEIR-TRIAL; iptables -t mangle -A WEIR-TRIAL -j SET --map-set weir-trial src --map-mark
//	iptables -t mangle -A WEIR-TRIAL -m mark --mark 0x10000/0x1fff0000 -j RETURN
//	iptables -t mangle -A WEIR-TRIAL -j MARK --set-xmark 0x0/0x1fff0000
//	iptables -t mangle -F WEIR-TRIAL; iptables -t mangle -X WEIR-TRIAL; ipset destroy weir-trial
func (d *Driver) supports(ctx context.Context, f conf.Family) bool {
	for _, at := range dispatches {
		if d.have.sets[f.Set(at.set)].kind == numberedPods {
			d.support[f] = supported
		}
	}
	if d.support[f] != untried {
		return d.support[f] == supported
	}
	trial := ipset.Header{Name: conf.TrialSet, Type: ipset.HashIP, Family: f, Marks: true}
	if d.sets.Create(trial) != nil {
		if trial.Marks = false; d.tryType(trial) == nil {
			d.support[f] = unsupported
		}
		return false // if the kernel refuses all sets, the next Apply tries again
	}
	rules := []string{
		"-j SET --map-set " + conf.TrialSet + " src --map-mark",
		"-m mark --mark " + markText(openClass, allBits) + " -j RETURN", clearMark,
	}
	switch {
	case d.tryLines(ctx, f, rules) == nil:
		d.support[f] = supported
	case d.tryLines(ctx, f, nil) == nil:
		d.support[f] = unsupported
	}
	waiting, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = d.destroyUnused(waiting, conf.TrialSet) // if that fails, the next resync destroys the set
	return d.support[f] == supported
}

// numbers returns the numbers of the family's classes (see numbers.go), by dispatch chain. If there are more classes
// than numbers, it returns nil.
func (m *lowering) numbers(have *state, f conf.Family, r ruleset.Ruleset) map[string]*numbering {
	mangle := have.tables[f][checks]
	if mangle.numbers == nil && mangle.unknown == nil {
		mangle.numbers = map[string]*numbering{}
		for chain := range dispatches {
			mangle.numbers[chain] = numberingOf(mangle.rules, chain)
		}
		if have.tables[f] == nil {
			have.tables[f] = tables{}
		}
		have.tables[f][checks] = mangle
	}
	sets := map[string]ruleset.Set{}
	for _, s := range r.Sets {
		if s.Family == f && s.Role == ruleset.Members {
			sets[s.Name] = s
		}
	}
	all := map[string]*numbering{}
	for _, c := range r.Chains {
		d, ok := dispatches[c.Name]
		if !ok || c.Family != f {
			continue
		}
		was := mangle.numbers[c.Name]
		if last := m.chains[chainKey{f, c.Name}]; was != nil && was == last.numbers && (ruleset.Chain{Rules: last.rules}).
			Equal(ruleset.Chain{Rules: c.Rules}) {
			all[c.Name] = was
			continue
		}
		if was == nil {
			was = &numbering{}
		}
		now, ok := assign(was, have.sets[f.Set(d.set)].entries, classesOf(c, sets))
		if !ok {
			return nil
		}
		if maps.Equal(now.leaves, was.leaves) && maps.Equal(now.of, was.of) {
			now = was
		}
		all[c.Name] = now
	}
	return all
}
