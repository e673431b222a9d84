package iptables

import (
	"net/netip"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// renumbering has the changes of pods' numbers in one family's sets. The field before has the changes that are made
// before the rules change. The field after has the changes that are made when the rules have changed.
//
// A packet between two pods is checked with the sender's class for egress and with the receiver's class for ingress.
// If these classes changed one after the other, a packet could pass that neither the old nor the new state allows. So
// a pod's number changes before the rules if, by the old rules, the new class allows no more than the old class. It
// changes after the rules if, by the new rules, the old class allows no more than the new class. Otherwise the pod is
// in no class while the rules change. The field across has exceptions: such a number changes in one step, because no
// packet can meet the old class of one pod and the new class of the other pod.
type renumbering struct {
	before, after []change
	across        []change
	closes        bool
}

func renumber(have state, f conf.Family, sets []ruleset.Set, want *lowered, rules bool, ended map[netip.Addr]bool,
) (all renumbering) {
	type crossing struct {
		del, add change
	}
	var crossings []crossing
	moving := map[ruleset.Element]bool{}
	directions := map[string]bool{}
	for _, s := range sets {
		had, exists := have.sets[s.Name]
		if !exists || had.kind != s.Kind {
			continue // this set is created with all its entries
		}
		d := numbersBefore(have, f, s, want)
		for c := range had.entries.Diff(s.Entries) {
			del := change{set: s.Name, Entry: ruleset.Entry{Element: c.Key}, del: true}
			add := change{set: s.Name, Entry: ruleset.Entry{Element: c.Key, Comment: c.Now}}
			switch {
			case !c.Has:
				all.before, all.closes = append(all.before, del), all.closes || !ended[c.Key.Prefix.Addr()]
				continue
			case !c.Had:
				all.after = append(all.after, add)
				continue
			}
			was, _ := splitNumber(c.Was)
			now, _ := splitNumber(c.Now)
			all.closes = all.closes || d.closes(was, now)
			switch d.when(was, now) {
			case early:
				all.before = append(all.before, add)
			case late:
				all.after = append(all.after, add)
			case never:
				crossings = append(crossings, crossing{del, add})
				moving[c.Key], directions[s.Name] = true, true
			}
		}
	}
	for _, c := range crossings {
		// A packet is checked with the sender's class and with the receiver's class. If the rules stay, and only one pod
		// moves, or pods move in only one direction, no packet meets the old class of one end and the new class of the other.
		// Then the number may change in one step.
		if !rules && (len(moving) == 1 || len(directions) == 1) {
			all.across = append(all.across, c.add)
		} else {
			all.before, all.after = append(all.before, c.del), append(all.after, c.add)
		}
	}
	return all
}

type moment int

const (
	early moment = iota // before the rules change
	late                // after the rules have changed
	never               // no moment is safe: the pod must be in no class while the rules change
)

type numberChange struct {
	old, new           leaves
	oldLines, newLines func(chain string) []string
	known              bool // true if the old rules are known
}

func numbersBefore(have state, f conf.Family, s ruleset.Set, want *lowered) numberChange {
	t := have.tables[f][checks]
	d := numberChange{
		known:    t.unknown == nil || t.numbers != nil,
		oldLines: func(chain string) []string { return t.rules[chain] },
		newLines: func(chain string) []string { return want.check(f, chain).lines },
	}
	if n := t.numbers[s.Dispatch]; n != nil {
		d.old = n.leaves
	}
	if n := want.numbers[f][s.Dispatch]; n != nil {
		d.new = n.leaves
	}
	return d
}

// when returns the moment at which a pod's number may change. If possible, it returns a moment such that the pod is
// always in a class.
func (d numberChange) when(was, now int) moment {
	isEarly := d.known && within(d.old[now], d.old[was], d.oldLines)
	isLate := within(d.new[was], d.new[now], d.newLines)
	switch {
	case was == now, isEarly && d.old[now] != "":
		return early
	case isLate:
		return late
	case isEarly:
		return early
	}
	return never
}

// closes reports whether the pod's new class may deny a packet that its old class allowed. The parameters was and now
// are the numbers of the old and the new class.
func (d numberChange) closes(was, now int) bool {
	return was != now && (!d.known || !within(d.old[was], d.new[now], d.newLines))
}

// within reports whether the chain x certainly allows no more than the chain y. The empty name stands for no class,
// which allows nothing.
func within(x, y string, lines func(chain string) []string) bool {
	const allows, drop, log = " -j RETURN", "-j DROP", "-j NFLOG"
	switch {
	case x == "", x == y, y == returns:
		return true
	case y == "":
		return false
	case allowsAll(lines(y)):
		return true
	case x == returns:
		return false
	}
	allowed := map[string]bool{}
	for _, l := range lines(y) {
		if !strings.HasSuffix(" "+l, allows) {
			break
		}
		allowed[l] = true
	}
	of := lines(x)
	for _, l := range of {
		if !allowed[l] && !strings.HasSuffix(l, drop) && !strings.Contains(l, log) {
			return false
		}
	}
	return len(of) > 0
}

type openClasses struct {
	old           map[string][]string // rules of the table's chains before the change
	want          *lowered
	family        conf.Family
	chain         string
	before, after map[string]bool
}

// mayBeInBoth reports whether a pod may be in both class sets while the rules change. A pod may be in both sets if the
// rules for these sets drop nothing, before and after the change.
func (o *openClasses) mayBeInBoth(from, to string) bool {
	if from == "" || to == "" {
		return false
	}
	if o.before == nil {
		o.before = openSets(o.old[o.chain], func(chain string) []string { return o.old[chain] })
		o.after = openSets(o.want.check(o.family, o.chain).lines, func(chain string) []string {
			return o.want.check(o.family, chain).lines
		})
	}
	free := func(in map[string]bool, set string) bool {
		opens, used := in[set]
		return opens || !used
	}
	return o.before[from] && o.after[to] && free(o.before, to) && free(o.after, from)
}

func openSets(dispatch []string, lines func(chain string) []string) map[string]bool {
	open := map[string]bool{}
	for _, l := range dispatch {
		r := split(l)
		for _, name := range r.sets {
			opens, known := open[name]
			open[name] = (opens || !known) && (r.target == returns || allowsAll(lines(r.target)))
		}
	}
	return open
}

// allowsAll reports whether the chain certainly allows all packets, as the chain of a class with only audited policies
// does.
func allowsAll(lines []string) bool {
	for _, l := range lines {
		switch r := split(l); {
		case r.target == returns && len(r.conditions) == 0:
			return true
		case r.target != returns && r.target != "NFLOG":
			return false
		}
	}
	return false
}
