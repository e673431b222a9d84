package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy"
)

// state is what the kernel holds of weir's.
type state struct {
	sets   map[string]set
	tables map[string]table
}

// set is an ipset: its type, and its entries with their comments.
type set struct {
	kind    policy.SetType
	entries map[netip.Prefix]string
}

// table is an iptables table: the rules of each chain as iptables-save prints them, without "-A CHAIN".
type table map[string][]string

// plan is how to get from what the kernel holds to what it should hold. Its steps are taken in the order of its fields;
// after each of them the node lets through nothing that neither the old nor the new state does.
type plan struct {
	create  []policy.Set // with their entries; no rule uses them yet
	before  []change
	restore string // for iptables-restore --noflush
	after   []change
	destroy []string
}

// change of one entry of a set.
type change struct {
	set string
	policy.Entry
	del bool
}

func (p plan) empty() bool {
	return len(p.create)+len(p.before)+len(p.after)+len(p.destroy) == 0 && p.restore == ""
}

// tablesUsed in the order in which they change: what drops comes before what accepts.
var tablesUsed = []string{"mangle", "filter", "nat"}

// chainPrefix begins the names of weir's chains, and of nobody else's.
const chainPrefix = "WEIR-"

// makePlan is the difference between have and want. What closes comes before the rules change, what opens after. The
// change of rules itself is one transaction in the table that drops.
func makePlan(have state, want policy.Ruleset) plan {
	var p plan
	wanted := map[string]bool{}
	byDispatch := map[string][]policy.Set{}
	for _, s := range want.Sets {
		wanted[s.Name] = true
		old, ok := have.sets[s.Name]
		if !ok {
			p.create = append(p.create, s)
		}
		if s.Role == policy.Members {
			byDispatch[s.Dispatch] = append(byDispatch[s.Dispatch], s)
			continue
		}
		if !ok {
			continue
		}
		adds, dels := diff(old, s)
		if s.Role == policy.Judged {
			p.before, p.after = append(p.before, adds...), append(p.after, dels...)
		} else {
			p.before, p.after = append(p.before, dels...), append(p.after, adds...)
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(byDispatch)) {
		before, after := moves(have, chain, byDispatch[chain], want)
		p.before, p.after = append(p.before, before...), append(p.after, after...)
	}
	for _, name := range slices.Sorted(maps.Keys(have.sets)) {
		if !wanted[name] {
			p.destroy = append(p.destroy, name)
		}
	}
	var b strings.Builder
	for _, name := range tablesUsed {
		b.WriteString(restoreTable(name, have.tables[name], want))
	}
	p.restore = b.String()
	return p
}

// moves are the changes to the classes' sets of one direction.
//
// A packet is judged twice, where it leaves and where it arrives. If one pod's change of class opened its side before
// another's closed the other side, a packet could pass that neither the old nor the new state lets through. So whoever
// changes class does it in the transaction that changes the rules, where the rules' order makes that possible, or else
// is taken out of the old class before it and put into the new one after it.
func moves(have state, chain string, sets []policy.Set, want policy.Ruleset) (before, after []change) {
	newRules, _ := want.Chain("mangle", chain)
	newOrder, oldOrder := orderOf(lines(newRules)), orderOf(have.tables["mangle"][chain])
	old := map[netip.Prefix]string{} // the class that an address is dispatched to now
	for _, name := range slices.Backward(oldOrder) {
		for prefix := range have.sets[name].entries {
			old[prefix] = name
		}
	}
	target := map[netip.Prefix]string{}
	for _, s := range sets {
		for _, e := range s.Entries {
			target[e.Prefix] = s.Name
		}
	}
	for _, s := range sets {
		held, exists := have.sets[s.Name]
		if !exists {
			continue // it is created with its entries
		}
		adds, dels := diff(held, s)
		for _, c := range adds {
			from := old[c.Prefix]
			// Out of a class that goes with the change of rules, into one that is behind it until then.
			atOnce := from != "" && !slices.Contains(newOrder, from) && slices.Index(oldOrder, from) < slices.Index(oldOrder, s.Name)
			if atOnce || from == s.Name {
				before = append(before, c)
			} else {
				after = append(after, c)
			}
		}
		for _, c := range dels {
			to := target[c.Prefix]
			_, toExists := have.sets[to]
			// Into a class that comes with the change of rules, ahead of this one.
			atOnce := to != "" && !toExists && slices.Index(newOrder, to) < slices.Index(newOrder, s.Name)
			if atOnce {
				after = append(after, c)
			} else {
				before = append(before, c)
			}
		}
	}
	return before, after
}

// orderOf are the sets that a dispatching chain goes by, in its order.
func orderOf(rules []string) []string {
	var names []string
	for _, r := range rules {
		if _, rest, ok := strings.Cut(r, "--match-set "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

func lines(c policy.Chain) []string {
	all := make([]string, len(c.Rules))
	for i, r := range c.Rules {
		all[i] = r.String()
	}
	return all
}

func diff(have set, want policy.Set) (adds, dels []change) {
	entries := maps.Clone(have.entries)
	for _, e := range want.Entries {
		if c, ok := entries[e.Prefix]; !ok || c != e.Comment {
			adds = append(adds, change{set: want.Name, Entry: e})
		}
		delete(entries, e.Prefix)
	}
	for _, prefix := range slices.SortedFunc(maps.Keys(entries), comparePrefix) {
		dels = append(dels, change{set: want.Name, Entry: policy.Entry{Prefix: prefix}, del: true})
	}
	return adds, dels
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// restoreTable is the part for one table: chains that are new or differ are written anew, jumps are put where they
// belong, and chains that nobody wants are deleted. Empty if nothing is to be done.
func restoreTable(name string, have table, want policy.Ruleset) string {
	var chains, rules, drop []string
	wanted := map[string]bool{}
	for _, c := range want.Chains {
		if c.Table != name {
			continue
		}
		wanted[c.Name] = true
		should := lines(c)
		if old, ok := have[c.Name]; ok && slices.Equal(old, should) {
			continue
		}
		chains = append(chains, c.Name)
		for _, l := range should {
			rules = append(rules, "-A "+c.Name+" "+l)
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(have)) {
		if strings.HasPrefix(chain, chainPrefix) && !wanted[chain] {
			chains = append(chains, chain) // naming it flushes it
			drop = append(drop, "-X "+chain)
		}
	}
	rules = append(rules, jumps(name, have, want)...)
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

// jumps puts weir's rules in the built-in chains right: one copy of each that is wanted, the first where it must be
// first, and none that isn't wanted. Strangers' rules are left alone.
func jumps(name string, have table, want policy.Ruleset) []string {
	var commands []string
	for _, chain := range slices.Sorted(maps.Keys(have)) {
		if strings.HasPrefix(chain, chainPrefix) {
			continue
		}
		commands = append(commands, jumpsIn(name, chain, have[chain], want)...)
	}
	return commands
}

func jumpsIn(name, chain string, have []string, want policy.Ruleset) []string {
	var ours []string // wanted and unwanted rules of weir's that are there
	for _, l := range have {
		if strings.Contains(l, "-j "+chainPrefix) {
			ours = append(ours, l)
		}
	}
	var wanted []string
	first := false
	for _, j := range want.Jumps {
		if j.Table == name && j.Chain == chain {
			wanted, first = append(wanted, j.Rule.String()), j.First
		}
	}
	if slices.Equal(ours, wanted) && (!first || have[0] == wanted[0]) {
		return nil
	}
	var commands []string
	for _, l := range ours {
		commands = append(commands, "-D "+chain+" "+l)
	}
	for _, l := range wanted {
		if first {
			commands = append(commands, "-I "+chain+" 1 "+l)
		} else {
			commands = append(commands, "-A "+chain+" "+l)
		}
	}
	return commands
}

// parseSave reads what iptables-save prints of one table. Chains other than weir's are kept too: the rules of built-in
// chains say where weir's jumps stand.
func parseSave(out string) table {
	t := table{}
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			t[name] = nil
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			t[chain] = append(t[chain], rule)
		}
	}
	return t
}

// after is the state once the plan has been carried out.
func (s state) after(want policy.Ruleset, left []string) state {
	next := state{sets: map[string]set{}, tables: map[string]table{}}
	for _, w := range want.Sets {
		entries := make(map[netip.Prefix]string, len(w.Entries))
		for _, e := range w.Entries {
			entries[e.Prefix] = e.Comment
		}
		next.sets[w.Name] = set{w.Type, entries}
	}
	for _, name := range left {
		next.sets[name] = s.sets[name]
	}
	for _, name := range tablesUsed {
		next.tables[name] = table{}
	}
	for _, c := range want.Chains {
		next.tables[c.Table][c.Name] = lines(c)
	}
	for _, j := range want.Jumps {
		next.tables[j.Table][j.Chain] = append(next.tables[j.Table][j.Chain], j.Rule.String())
	}
	return next
}
