package kernel

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

// state is what the kernel holds of weir's.
type state struct {
	sets   map[string]set
	tables [len(conf.Families)]tables
}

// tables of one family, by their names.
type tables map[string]table

// holds says whether there is a chain of weir's.
func (t tables) holds() bool {
	for _, name := range tablesUsed {
		for chain := range t[name] {
			if strings.HasPrefix(chain, chainPrefix) {
				return true
			}
		}
	}
	return false
}

// table is an iptables table: the rules of each chain as iptables-save prints them, without "-A CHAIN".
type table map[string][]string

// tablesUsed in the order in which they change: what drops comes before what accepts.
var tablesUsed = []string{"mangle", "filter", "nat"}

// chainPrefix begins the names of weir's chains, and of nobody else's.
const chainPrefix = "WEIR-"

// stands says of the family's table that drops whether packets of pods' can't get past weir's chains: those that the ruleset has
// there are there, and those that dispatch, and those of the classes that they dispatch to, end in DROP. It doesn't ask
// what else is in them: another version's may differ.
func (t table) stands(f conf.Family, want policy.Ruleset) bool {
	drops := func(chain string) bool {
		return len(t[chain]) > 0 && strings.HasSuffix(t[chain][len(t[chain])-1], " -j DROP")
	}
	for _, c := range want.Chains {
		if c.Family == f && c.Table == "mangle" && len(t[c.Name]) == 0 {
			return false
		}
	}
	for _, s := range want.Sets {
		if s.Family != f || s.Role != policy.Members {
			continue
		}
		if !drops(s.Dispatch) {
			return false
		}
		for _, rule := range t[s.Dispatch] {
			if _, class, ok := strings.Cut(rule, " -g "); ok && !drops(class) {
				return false
			}
		}
	}
	return true
}

// section is what iptables-save prints of one table among all.
func section(out, name string) string {
	_, rest, ok := strings.Cut("\n"+out, "\n*"+name+"\n")
	if !ok {
		return ""
	}
	text, _, _ := strings.Cut(rest, "\nCOMMIT\n")
	return text + "\n"
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

func tablesOf(f conf.Family, want policy.Ruleset) tables {
	all := tables{}
	for _, name := range tablesUsed {
		all[name] = table{}
	}
	for _, c := range want.Chains {
		if c.Family == f {
			all[c.Table][c.Name] = lines(c)
		}
	}
	for _, j := range want.Jumps {
		if j.Family == f {
			all[j.Table][j.Chain] = append(all[j.Table][j.Chain], j.Rule.String())
		}
	}
	return all
}

// set is an ipset: its type and family, and its entries with their comments.
type set struct {
	kind    policy.SetType
	family  conf.Family
	entries map[policy.Element]string
}

// after is the state once the plan has been carried out. Sets that it doesn't change are the same maps as before.
func (s state) after(p plan, want policy.Ruleset, left []string) state {
	next := state{sets: make(map[string]set, len(want.Sets))}
	for _, w := range want.Sets {
		next.sets[w.Name] = s.sets[w.Name]
	}
	for _, w := range p.create {
		entries := make(map[policy.Element]string, len(w.Entries))
		for _, e := range w.Entries {
			entries[e.Element] = e.Comment
		}
		next.sets[w.Name] = set{w.Type, w.Family, entries}
	}
	for _, c := range slices.Concat(p.before, p.after) {
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
	}
	return next
}
