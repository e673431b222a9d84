package iptables

import (
	"net/netip"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// renumbering has the changes to the sets of a family's numbered pods.
//
// A packet between two pods is checked by the sender's egress class and by the receiver's ingress class. Suppose that
// both pods change their classes. If one pod's change allowed more before the other pod's change denied more, a packet
// could pass that neither the old nor the new state allows. So until the rules change, each pod's number may lead only
// to a class that allows no more than its old class. After that it may lead only to a class that allows no more than
// its new class. If a number fulfils both, a pod changes its class in one step. Otherwise the pod is in no class while
// the rules change.
type renumbering struct {
	before, after []change
	// across are changes from a class to another, of which neither allows all that the other allows. Each is one step.
	across []change
	// closes is true if the changes may deny an established connection.
	closes bool
}

// renumber returns the changes to the sets, which are those of the family's numbered pods. rules is true if the
// family's rules change too. ended has the addresses of attachments that have ended: taking them out closes nothing.
func renumber(have state, f conf.Family, sets []ruleset.Set, want *lowered, rules bool, ended map[netip.Addr]bool,
) (all renumbering) {
	type crossing struct {
		del, add change
	}
	var crossings []crossing
	moving := map[ruleset.Element]bool{}
	directions := map[string]bool{}
	for _, s := range sets {
		held, exists := have.sets[s.Name]
		if !exists || held.kind != s.Kind {
			continue // the set is created with its entries
		}
		d := numbersBefore(have, f, s, want)
		for c := range held.entries.Diff(s.Entries) {
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
			was, _ := unnumbered(c.Was)
			now, _ := unnumbered(c.Now)
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
		// Of the two classes that check a packet, at most one changes. So each packet is checked as in the old state or
		// as in the new.
		if !rules && (len(moving) == 1 || len(directions) == 1) {
			all.across = append(all.across, c.add)
		} else {
			all.before, all.after = append(all.before, c.del), append(all.after, c.add)
		}
	}
	return all
}

// moment says when a pod's number may change.
type moment int

const (
	early moment = iota // before the rules change
	late                // after that
	never               // not in one step
)

// numberChange has what a direction's numbers lead to, before and after a change of rules.
type numberChange struct {
	old, new           leaves
	oldLines, newLines func(chain string) []string
	known              bool // the old rules are known
}

// numbersBefore returns what the numbers in the set lead to before and after the change.
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

// when returns the moment at which a pod's number may change. It prefers a moment at which the pod is never closed.
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

// closes reports whether the change of a pod's number may deny what was allowed.
func (d numberChange) closes(was, now int) bool {
	return was != now && (!d.known || !within(d.old[was], d.new[now], d.newLines))
}

// within reports whether the class chain x surely allows no more than the class chain y: y allows everything, or has
// all of x's rules that allow packets. An empty name stands for no class, which allows nothing.
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

// openClasses finds class sets whose pods may be in two of them: those that lead to no rule that drops packets.
type openClasses struct {
	old           map[string][]string // the rules of the table's chains before the change
	want          *lowered
	family        conf.Family
	chain         string // the dispatch chain
	before, after map[string]bool
}

// both reports whether a pod may be in both class sets before and after the change of rules: the old rules lead from
// the first set to a class, the new rules lead from the second, and none of these rules drops a packet of either set.
func (o *openClasses) both(from, to string) bool {
	if from == "" || to == "" {
		return false
	}
	if o.before == nil {
		o.before = openIn(o.old[o.chain], func(chain string) []string { return o.old[chain] })
		o.after = openIn(o.want.check(o.family, o.chain).lines, func(chain string) []string {
			return o.want.check(o.family, chain).lines
		})
	}
	free := func(in map[string]bool, set string) bool {
		opens, used := in[set]
		return opens || !used
	}
	return o.before[from] && o.after[to] && free(o.before, to) && free(o.after, from)
}

// openIn returns for each set that the dispatch chain's rules match whether all of its packets are surely allowed.
func openIn(dispatch []string, lines func(chain string) []string) map[string]bool {
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

// allowsAll reports whether the chain surely allows every packet, as the chain of a class of audited policies does: one
// of its rules returns every packet, and the rules before it return or log packets.
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
