package iptables

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// plan has the steps from the kernel's state to the wanted ruleset, in the order of the fields. After each step, the
// kernel allows only packets that the old or the new state allows.
type plan struct {
	create []ruleset.Set // sets to create with their entries; no rule uses these sets yet
	before []change
	// across has changes of pods' numbers in one step. Such a change may allow some packets and deny others. It may
	// happen only after all changes of the field before have succeeded.
	across  []change
	restore [len(conf.Families)]string   // commands of each family for iptables-restore --noflush
	tables  [len(conf.Families)][]string // names of the tables that these commands change
	blind   []blind
	after   []change
	destroy []string
	// strays are entries of the sets of all pods that belong to no known attachment. They are not deleted, because they
	// may belong to a new attachment that isn't known yet.
	strays []change
	// closes is true if the new state may deny an established connection that the old state allows.
	closes bool
}

// blind has commands for a table that can't be read. The commands delete weir's rules, and then add them again. If a
// deletion fails, the driver uses the commands without deletions.
type blind struct {
	family   conf.Family
	commands string
}

func (b blind) withoutDeletions() string {
	var all strings.Builder
	for line := range strings.Lines(b.commands) {
		if !strings.HasPrefix(line, "-D ") {
			all.WriteString(line)
		}
	}
	return all.String()
}

type change struct {
	set string
	ruleset.Entry
	del bool
}

func (p plan) empty() bool { return len(p.destroy) == 0 && !p.changes() }

func (p plan) changes() bool {
	return len(p.create)+len(p.before)+len(p.across)+len(p.after) > 0 || p.restores()
}

func (p plan) restores() bool {
	return len(p.blind) > 0 || slices.ContainsFunc(p.restore[:], func(commands string) bool { return commands != "" })
}

// makePlan returns the steps from the kernel's state (have) to the wanted ruleset (want). Set changes that deny more
// packets come before the change of rules. Set changes that allow more packets come after the change of rules.
func makePlan(have state, want *lowered) plan {
	var p plan
	ended := endedIn(have, want)
	closing := func(c change) bool { return c.del && !ended[c.Prefix.Addr()] }
	known := 0
	type dispatched struct {
		family conf.Family
		chain  string
	}
	byDispatch := map[dispatched][]ruleset.Set{}
	var numbered [len(conf.Families)][]ruleset.Set
	for _, s := range want.sets {
		old, ok := have.sets[s.Name]
		if ok {
			known++
		}
		// A set of this name may have another type or family. Then the set must be destroyed and created again.
		if ok = ok && old.kind == s.Kind && old.family == s.Family; !ok {
			p.create = append(p.create, s)
		}
		if s.Kind == numberedPods {
			numbered[s.Family] = append(numbered[s.Family], s)
			continue
		}
		if s.Role == ruleset.Members {
			d := dispatched{s.Family, s.Dispatch}
			byDispatch[d] = append(byDispatch[d], s)
			continue
		}
		if !ok || old.entries.Same(s.Entries) {
			continue
		}
		adds, dels := diff(old, s)
		switch s.Role {
		case ruleset.Attached:
			p.before, p.strays = append(p.before, adds...), append(p.strays, dels...)
		case ruleset.Checked:
			p.before, p.after = append(p.before, adds...), append(p.after, dels...)
		default:
			p.before, p.after = append(p.before, dels...), append(p.after, adds...)
			p.closes = p.closes || slices.ContainsFunc(dels, closing)
		}
	}
	for _, d := range slices.SortedFunc(maps.Keys(byDispatch), func(a, b dispatched) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.chain, b.chain))
	}) {
		before, after := moves(have, d.family, d.chain, byDispatch[d], want)
		p.before, p.after = append(p.before, before...), append(p.after, after...)
		p.closes = p.closes || slices.ContainsFunc(slices.Concat(before, after), closing)
	}
	if known < len(have.sets) {
		p.destroy = unwanted(have, want)
	}
	for _, f := range conf.Families {
		changes := false // true if rules that check packets change
		for _, name := range tablesUsed {
			t := have.tables[f][name]
			commands := restoreTable(f, name, t, want)
			changes = changes || name == checks && commands != ""
			switch {
			case commands == "":
			case t.unknown != nil && t.unknown.seen == nil:
				p.blind = append(p.blind, blind{f, commands})
			default:
				p.restore[f] += commands
				p.tables[f] = append(p.tables[f], name)
			}
		}
		n := renumber(have, f, numbered[f], want, changes, ended)
		p.before, p.after = append(p.before, n.before...), append(p.after, n.after...)
		p.across, p.closes = append(p.across, n.across...), p.closes || n.closes
	}
	p.closes = p.closes || p.restores()
	return p
}

func unwanted(have state, want *lowered) (names []string) {
	wanted := make(map[string]bool, len(want.sets))
	for _, s := range want.sets {
		wanted[s.Name] = true
	}
	for name := range have.sets {
		if !wanted[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func endedIn(have state, want *lowered) map[netip.Addr]bool {
	ended := map[netip.Addr]bool{}
	for _, s := range want.sets {
		if s.Role != ruleset.Attached {
			continue
		}
		for c := range have.sets[s.Name].entries.Diff(s.Entries) {
			if !c.Has {
				ended[c.Key.Prefix.Addr()] = true
			}
		}
	}
	return ended
}

func moves(have state, f conf.Family, chain string, sets []ruleset.Set, want *lowered) (before, after []change) {
	newOrder, oldOrder := want.check(f, chain).dispatch, dispatchOf(have.tables[f][checks].rules[chain])
	unknown := have.tables[f][checks].unknown != nil
	old := map[ruleset.Element]string{} // for each address, the first class set that has it now
	for _, name := range slices.Backward(oldOrder) {
		for e := range have.sets[name].entries.All() {
			old[e.Element] = name
		}
	}
	wanted := map[string]ruleset.Entries{}
	for _, s := range sets {
		wanted[s.Name] = s.Entries
	}
	target := map[ruleset.Element]string{} // for each address, the first class set that has it after the change
	for _, name := range slices.Backward(newOrder) {
		for e := range wanted[name].All() {
			target[e.Element] = name
		}
	}
	open := openClasses{old: have.tables[f][checks].rules, want: want, family: f, chain: chain}
	for _, s := range sets {
		had, exists := have.sets[s.Name]
		if !exists {
			continue // this set is created with all its entries
		}
		adds, dels := diff(had, s)
		for _, c := range adds {
			from := old[c.Element]
			// While the pod is in the sets of both classes, the rule of the old class counts, because this rule comes first. The
			// change of rules removes this rule, so the pod then moves to the new class.
			atOnce := from != "" && !slices.Contains(newOrder, from) &&
				slices.Index(oldOrder, from) < slices.Index(oldOrder, s.Name)
			if atOnce || from == s.Name || open.mayBeInBoth(from, s.Name) {
				before = append(before, c)
			} else {
				after = append(after, c)
			}
		}
		for _, c := range dels {
			to := target[c.Element]
			_, toExists := have.sets[to]
			// Until the rules have changed, the pod is in the sets of both classes. The change adds the rule of the new class
			// before the rule of the old class, so the pod is in the new class from then on. The pod leaves the old class's set
			// later.
			atOnce := !unknown && to != "" && !toExists && slices.Index(newOrder, to) < slices.Index(newOrder, s.Name)
			if atOnce || s.Name == old[c.Element] && open.mayBeInBoth(s.Name, to) {
				after = append(after, c)
			} else {
				before = append(before, c)
			}
		}
	}
	return before, after
}

func diff(have set, want ruleset.Set) (adds, dels []change) {
	for c := range have.entries.Diff(want.Entries) {
		if c.Has {
			adds = append(adds, change{set: want.Name, Entry: ruleset.Entry{Element: c.Key, Comment: c.Now}})
		} else {
			dels = append(dels, change{set: want.Name, Entry: ruleset.Entry{Element: c.Key}, del: true})
		}
	}
	return adds, dels
}

// restoreTable returns the commands for one table, or "" if nothing must change. If the table can't be read, the
// commands delete no chains.
func restoreTable(f conf.Family, name string, have table, want *lowered) string {
	var chains, rules, drop []string
	wanted := map[string]bool{}
	for _, c := range want.chains {
		if c.family != f || c.table != name {
			continue
		}
		wanted[c.name] = true
		if have.is(c.name, c.lines) {
			continue
		}
		chains = append(chains, c.name)
		for _, l := range c.lines {
			rules = append(rules, "-A "+c.name+" "+l)
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(have.rules)) {
		if conf.OwnChain(chain) && !wanted[chain] {
			chains = append(chains, chain) // a line with the chain's name empties the chain
			drop = append(drop, "-X "+chain)
		}
	}
	rules = append(rules, jumps(f, name, have, want)...)
	if len(chains)+len(rules)+len(drop) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", name)
	for _, c := range chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, l := range append(rules, drop...) {
		b.WriteString(l + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func (t table) is(chain string, rules []string) bool {
	if u := t.unknown; u != nil {
		w, ok := u.written[chain]
		now, seen := u.seen[chain]
		return ok && seen && slices.Equal(w.lines, rules) && w.sum == sum(now)
	}
	old, ok := t.rules[chain]
	return ok && slices.Equal(old, rules)
}

// jumps returns the commands that put weir's jumps into their places in the built-in chains. If the table can be read,
// the commands also delete duplicate jumps, and jumps that aren't wanted.
func jumps(f conf.Family, name string, have table, want *lowered) []string {
	var commands []string
	if have.unknown != nil {
		for _, j := range want.jumps {
			if j.family == f && j.table == name {
				commands = append(commands, have.unknown.jump(j)...)
			}
		}
		return commands
	}
	for _, chain := range slices.Sorted(maps.Keys(have.rules)) {
		if conf.OwnChain(chain) {
			continue
		}
		commands = append(commands, jumpsIn(f, name, chain, have, want)...)
	}
	return commands
}

// jump returns the commands that put weir's jump into its place in a table that iptables-save can't print. If nf_tables
// doesn't show the table's rules either, the commands first delete the old jump. Otherwise they delete nothing:
// iptables can delete a rule only if it understands all rules before it, so deleteCopies deletes old jumps later.
func (u *unknown) jump(j jump) []string {
	add := "-A " + j.chain + " " + j.line
	if j.first {
		add = "-I " + j.chain + " 1 " + j.line
	}
	if u.seen == nil {
		return []string{"-D " + j.chain + " " + j.line, add}
	}
	rules := u.seen[j.chain]
	standsFirst := len(rules) > 0 && rules[0].jumpsTo(j.to)
	stands := slices.ContainsFunc(rules, func(r seen) bool { return r.jumpsTo(j.to) })
	if standsFirst || stands && !j.first {
		return nil
	}
	return []string{add}
}

func jumpsIn(f conf.Family, name, chain string, t table, want *lowered) []string {
	have := t.rules[chain]
	var ours, others []string // ours are weir's rules in the chain, wanted or not
	last := 0                 // how many rules of other programs precede weir's last rule
	for _, l := range have {
		if split(l).own() {
			ours, last = append(ours, l), len(others)
		} else {
			others = append(others, l)
		}
	}
	end := t.refusesAt(others)
	var wanted []string
	first := false
	for _, j := range want.jumps {
		if j.family == f && j.table == name && j.chain == chain {
			wanted, first = append(wanted, j.line), j.first
		}
	}
	// In filter FORWARD, the jump moves behind new rules of other programs, so that these rules apply to pods' packets
	// too.
	placed := name != "filter" || last == end
	if first {
		placed = len(have) > 0 && have[0] == wanted[0]
	}
	if slices.Equal(ours, wanted) && placed {
		return nil
	}
	var commands []string
	for _, l := range ours {
		commands = append(commands, "-D "+chain+" "+l)
	}
	for _, l := range wanted {
		switch {
		case first:
			commands = append(commands, "-I "+chain+" 1 "+l)
		case end < len(others):
			commands = append(commands, fmt.Sprintf("-I %s %d %s", chain, end+1, l))
		default:
			commands = append(commands, "-A "+chain+" "+l)
		}
	}
	return commands
}
