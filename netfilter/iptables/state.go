package iptables

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// state is what the kernel holds of weir's.
type state struct {
	sets   map[string]set
	tables [len(conf.Families)]tables
}

// tables of one family, by their names.
type tables map[string]table

// holds says whether there is a chain of weir's, or may be one.
func (t tables) holds() bool {
	for _, name := range tablesUsed {
		if t[name].unknown != nil {
			return true
		}
		for chain := range t[name].rules {
			if strings.HasPrefix(chain, chainPrefix) {
				return true
			}
		}
	}
	return false
}

// unknown are the reasons why tables couldn't be read.
func (t tables) unknown() (why []error) {
	for _, name := range tablesUsed {
		if u := t[name].unknown; u != nil {
			why = append(why, u.why)
		}
	}
	return why
}

// table is what an iptables table holds, or why that isn't known. An empty table is a known one.
type table struct {
	// rules of each chain as iptables-save prints them, without "-A CHAIN"; nil if the table is unknown.
	rules   map[string][]string
	unknown *unknown
	// dormant says that somebody has switched the table off: it holds its rules, and no packet passes them.
	dormant bool
	// misplaced are built-in chains that packets don't come through where iptables has them do.
	misplaced []string
}

// unknown is a table that iptables-save can't print: a rule in it isn't iptables' own, or is of another version. What
// weir has there can be written all the same.
type unknown struct {
	why error
	// seen is what the kernel itself tells of the rules in the table; nil where it tells nothing (iptables-legacy).
	seen map[string][]seen
	// written are weir's chains as the driver has written them last.
	written map[string]written
}

// written is a chain that the driver has written, and how the kernel shows it since.
type written struct {
	lines []string
	sum   string
}

// stands is table.stands for a table that iptables can't print: the kernel tells enough of it. It is false where the
// kernel tells nothing.
func (u *unknown) stands(f conf.Family, want ruleset.Ruleset) bool {
	t := table{rules: map[string][]string{}}
	for chain, rules := range u.seen {
		for _, r := range rules {
			t.rules[chain] = append(t.rules[chain], r.outline())
		}
	}
	return t.stands(f, want)
}

// tablesUsed in the order in which they change: what drops comes before what accepts.
var tablesUsed = []string{"mangle", "filter", "nat"}

// chainPrefix begins the names of weir's chains, and of nobody else's.
const chainPrefix = "WEIR-"

// stands says of the family's table that drops whether packets of pods' can't get past weir's chains: those that
// packets enter by are there, those that dispatch, and those of the classes that they dispatch to, end in DROP, and
// no rule leads to an empty one. It doesn't ask what else is in them: another version's may differ, and lack chains
// that the ruleset has.
func (t table) stands(f conf.Family, want ruleset.Ruleset) bool {
	if t.unknown != nil {
		return t.unknown.stands(f, want)
	}
	drops := func(chain string) bool {
		rules := t.rules[chain]
		return len(rules) > 0 && strings.HasSuffix(rules[len(rules)-1], " -j DROP")
	}
	needed := map[string]bool{}
	for _, j := range want.Jumps {
		needed[j.Rule.To] = true
	}
	for _, rules := range t.rules {
		for _, l := range rules {
			needed[split(l).target] = true
		}
	}
	for _, c := range want.Chains {
		if c.Family == f && c.Table == "mangle" && needed[c.Name] && len(t.rules[c.Name]) == 0 {
			return false
		}
	}
	for _, s := range want.Sets {
		if s.Family != f || s.Role != ruleset.Members {
			continue
		}
		if !drops(s.Dispatch) {
			return false
		}
		for _, rule := range t.rules[s.Dispatch] {
			if _, class, ok := strings.Cut(rule, " -g "); ok && !drops(class) {
				return false
			}
		}
	}
	return true
}

// parseSave reads what iptables-save prints of one table. Chains other than weir's are kept too: the rules of built-in
// chains say where weir's jumps stand.
func parseSave(out string) table {
	t := table{rules: map[string][]string{}}
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			t.rules[name] = nil
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			t.rules[chain] = append(t.rules[chain], rule)
		}
	}
	return t
}

func tablesOf(f conf.Family, want ruleset.Ruleset) tables {
	all := tables{}
	for _, name := range tablesUsed {
		all[name] = table{rules: map[string][]string{}}
	}
	for _, c := range want.Chains {
		if c.Family == f {
			all[c.Table].rules[c.Name] = lines(c)
		}
	}
	for _, j := range want.Jumps {
		if j.Family == f {
			all[j.Table].rules[j.Chain] = append(all[j.Table].rules[j.Chain], j.Rule.String())
		}
	}
	return all
}

// set is an ipset: its type and family, and its entries with their comments.
type set struct {
	kind    ruleset.SetKind
	family  conf.Family
	entries map[ruleset.Element]string
}

// after is the state once the plan has been carried out. Sets that it doesn't change are the same maps as before.
func (s state) after(p plan, want ruleset.Ruleset, left []string) state {
	next := state{sets: make(map[string]set, len(want.Sets))}
	for _, w := range want.Sets {
		next.sets[w.Name] = s.sets[w.Name]
	}
	for _, w := range p.create {
		entries := make(map[ruleset.Element]string, len(w.Entries))
		for _, e := range w.Entries {
			entries[e.Element] = e.Comment
		}
		next.sets[w.Name] = set{w.Kind, w.Family, entries}
	}
	for _, c := range slices.Concat(p.before, p.after, p.strays) {
		if c.del {
			delete(next.sets[c.set].entries, c.Element)
		} else {
			next.sets[c.set].entries[c.Element] = c.Comment
		}
	}
	for _, name := range left {
		next.sets[name] = s.sets[name]
	}
	for _, f := range conf.Families {
		if next.tables[f] = s.tables[f]; p.restore[f] != "" || s.tables[f] == nil {
			next.tables[f] = tablesOf(f, want)
		}
		for name, t := range s.tables[f] {
			if t.unknown != nil { // whatever was written there
				next.tables[f][name] = t
			}
		}
	}
	return next
}

// see looks how the kernel shows what was written into tables that iptables can't print, and deletes copies of weir's
// rules there. before is the generation of the rules before the plan was carried out: if another has changed them
// since, what is seen may be the other's.
func (s state) see(want ruleset.Ruleset, p plan, before uint32) error {
	commits := strings.Count(strings.Join(p.restore[:], ""), "COMMIT\n")
	for _, f := range conf.Families {
		for name, t := range s.tables[f] {
			if t.unknown == nil || t.unknown.seen == nil {
				continue
			}
			chains, err := see(f, name)
			if err != nil {
				return err
			}
			after, err := generation()
			if err != nil {
				return err
			}
			u := &unknown{why: t.unknown.why, seen: chains, written: t.unknown.written}
			if alone := int(after-before) == commits; alone {
				u.written = map[string]written{}
				for _, c := range want.Chains {
					if c.Family == f && c.Table == name {
						u.written[c.Name] = written{lines(c), sum(chains[c.Name])}
					}
				}
			}
			s.tables[f][name] = table{unknown: u, dormant: t.dormant}
			if err := deleteCopies(f, name); err != nil {
				return err
			}
		}
	}
	return nil
}
