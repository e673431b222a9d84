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
			if conf.OwnChain(chain) {
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

// tablesUsed in the order in which they change: what drops comes before what accepts.
var tablesUsed = []string{"mangle", "filter", "nat"}

// stands reports of the family's table that checks packets whether no packet of a pod can get past weir's chains: the
// chains that packets enter by are there, those that send packets to classes, and those of the classes, end in DROP,
// and no rule leads to an empty chain. It doesn't look at what else is in them: another version's may differ, and
// lack chains that the ruleset has. Of a table that iptables can't print the kernel tells enough for that; where the
// kernel tells nothing, stands is false.
func (t table) stands(f conf.Family, want *lowered) bool {
	chains := map[string][]parts{}
	if t.unknown != nil {
		for chain, rules := range t.unknown.seen {
			for _, r := range rules {
				chains[chain] = append(chains[chain], r.parts())
			}
		}
	}
	for chain, rules := range t.rules {
		for _, l := range rules {
			chains[chain] = append(chains[chain], split(l))
		}
	}
	return stand(chains, f, want)
}

// stand is table.stands of the table's rules, by their chains.
func stand(chains map[string][]parts, f conf.Family, want *lowered) bool {
	drops := func(chain string) bool {
		rules := chains[chain]
		return len(rules) > 0 && rules[len(rules)-1].target == "DROP"
	}
	needed := map[string]bool{}
	for _, j := range want.jumps {
		needed[j.to] = true
	}
	for _, rules := range chains {
		for _, r := range rules {
			needed[r.target] = true
		}
	}
	for _, c := range want.chains {
		if c.family == f && c.table == checks && needed[c.name] && len(chains[c.name]) == 0 {
			return false
		}
	}
	for _, s := range want.sets {
		if s.Family != f || s.Role != ruleset.Members {
			continue
		}
		if !drops(s.Dispatch) {
			return false
		}
		for _, r := range chains[s.Dispatch] {
			if r.goes && !drops(r.target) {
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

func tablesOf(f conf.Family, want *lowered) tables {
	all := tables{}
	for _, name := range tablesUsed {
		all[name] = table{rules: map[string][]string{}}
	}
	for _, c := range want.chains {
		if c.family == f {
			all[c.table].rules[c.name] = c.lines
		}
	}
	for _, j := range want.jumps {
		if j.family == f {
			all[j.table].rules[j.chain] = append(all[j.table].rules[j.chain], j.line)
		}
	}
	return all
}

// set is an ipset: its kind and family, and its entries with their comments.
type set struct {
	kind    ruleset.SetKind
	family  conf.Family
	entries map[ruleset.Element]string
}

// after is the state once the plan has been carried out. Sets that it doesn't change are the same maps as before.
func (s state) after(p plan, want *lowered, left []string) state {
	next := state{sets: make(map[string]set, len(want.sets))}
	for _, w := range want.sets {
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
func (s state) see(want *lowered, p plan, before uint32) error {
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
				for _, c := range want.chains {
					if c.family == f && c.table == name {
						u.written[c.name] = written{c.lines, sum(chains[c.name])}
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
