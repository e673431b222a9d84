package iptables

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type state struct {
	sets   map[string]set
	tables [len(conf.Families)]tables
}

type tables map[string]table

// only is a filter: the result has the part of the state that belongs to the given families. If a set has the name of
// a wanted set, the wanted set's family counts, because another program may have made the set for another family.
func (s state) only(families []conf.Family, want *lowered) state {
	of := map[string]conf.Family{}
	for _, w := range want.sets {
		of[w.Name] = w.Family
	}
	part := state{sets: map[string]set{}}
	for name, had := range s.sets {
		f, wanted := of[name]
		if !wanted {
			f = had.family
		}
		if slices.Contains(families, f) {
			part.sets[name] = had
		}
	}
	for _, f := range families {
		part.tables[f] = s.tables[f]
	}
	return part
}

func (t tables) mayHaveChains() bool {
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

func (t tables) unknown() (why []error) {
	for _, name := range tablesUsed {
		if u := t[name].unknown; u != nil {
			why = append(why, u.why)
		}
	}
	return why
}

type table struct {
	// print is the fingerprint that the table had shortly before it was read.
	print fingerprint
	// at is the last generation of nf_tables at which the table had these rules. It is 0 if the generation is unknown.
	at      uint32
	rules   map[string][]string
	unknown *unknown
	numbers map[string]*numbering
	// dormant is true if another program has switched the table off. Then its rules check no packets.
	dormant bool
	// misplaced has the built-in chains that another program has put at a wrong hook, or at none.
	misplaced []string
}

// unknown describes a table that can't be read (see readText). weir's rules can still be written to this table.
type unknown struct {
	why     error
	seen    map[string][]seen
	written map[string]written
}

type written struct {
	lines []string
	sum   string
}

// tablesUsed has the tables in the order in which weir changes them. mangle, whose rules drop packets, comes before
// filter, whose rules accept packets.
var tablesUsed = []string{"mangle", "filter", "nat"}

// stands reports whether weir's chains in mangle are complete enough to check every packet of a pod. It doesn't compare
// the rules with the wanted ones, because another version of weir may have made the rules. It returns false if the
// rules can't be read.
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

func stand(chains map[string][]parts, f conf.Family, want *lowered) bool {
	// drops reports whether the chain and the targets of its rules with -g drop all packets that they don't allow. The
	// last rule of such a chain is DROP, or its last two rules are those of audited policies: NFLOG and RETURN.
	var drops func(chain string, depth int) bool
	drops = func(chain string, depth int) bool {
		rules := chains[chain]
		n := len(rules)
		audited := depth < maxDepth && n > 1 && rules[n-1].target == returns && len(rules[n-1].conditions) == 0 &&
			rules[n-2].audits
		return depth > 0 && n > 0 && (audited || rules[n-1].target == "DROP") &&
			!slices.ContainsFunc(rules, func(r parts) bool { return r.goes && !drops(r.target, depth-1) })
	}
	for _, j := range want.jumps {
		if j.family == f && j.table == checks && len(chains[j.to]) == 0 {
			return false
		}
	}
	for _, rules := range chains {
		for _, r := range rules {
			if conf.OwnChain(r.target) && len(chains[r.target]) == 0 {
				return false
			}
		}
	}
	for _, s := range want.sets {
		if s.Family != f || s.Role != ruleset.Members {
			continue
		}
		if !drops(s.Dispatch, maxDepth) {
			return false
		}
	}
	return true
}

// parseSave parses iptables-save's output for one table. The result has other programs' chains too, because weir has
// rules in some of them.
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

type set struct {
	kind    ruleset.SetKind
	family  conf.Family
	entries ruleset.Entries
	reading *reading // an earlier reading, or nil
}

// reading remembers what a set contained, and the hash of the kernel's list at that time (ipset.Set.Print). It is valid
// even after the set has changed: whenever the list has this hash again, the set has these entries again.
type reading struct {
	print uint64
	was   set
}

func newReading(print uint64, was set) *reading {
	was.reading = nil // otherwise each reading would keep all earlier readings
	return &reading{print, was}
}

func (r *reading) set() set {
	s := r.was
	s.reading = r
	return s
}

// after returns the state of the kernel after the plan has been carried out: the kernel then has the wanted sets and
// rules (want), and the unneeded sets in the list left, which still exist. Strays (plan.strays) count as deleted,
// although they are still in the kernel.
func (s state) after(p plan, want *lowered, left []string) state {
	next := state{sets: make(map[string]set, len(want.sets))}
	for _, w := range want.sets {
		next.sets[w.Name] = set{w.Kind, w.Family, w.Entries, s.sets[w.Name].reading}
	}
	for _, name := range left {
		next.sets[name] = s.sets[name]
	}
	for _, f := range conf.Families {
		if next.tables[f] = s.tables[f]; p.restore[f] != "" || s.tables[f] == nil {
			next.tables[f] = tablesOf(f, want)
		}
		for name, t := range s.tables[f] {
			if t.unknown != nil || !slices.Contains(p.tables[f], name) { // a table that can't be read stays unknown
				next.tables[f][name] = t
			}
		}
		if mangle, ok := next.tables[f][checks]; ok && want.has(f) {
			mangle.numbers = want.numbers[f]
			next.tables[f][checks] = mangle
		}
	}
	return next
}

// rereadUnknown reads the tables again that iptables can't print, and deletes copies of weir's rules there. The
// parameter before is the generation of nf_tables before the plan was carried out. If only the plan has changed
// nf_tables since, rereadUnknown remembers in which form nf_tables shows weir's chains.
func (d *Driver) rereadUnknown(s state, want *lowered, p plan, before uint32) error {
	commits := len(slices.Concat(p.tables[:]...)) // each table is changed in a transaction of its own
	for _, f := range conf.Families {
		for name, t := range s.tables[f] {
			if t.unknown == nil || t.unknown.seen == nil {
				continue
			}
			chains, err := rulesOf(d.reader, f, name)
			if err != nil {
				return err
			}
			after, err := d.reader.Generation()
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
			if err := deleteCopies(d.reader, f, name); err != nil {
				return err
			}
		}
	}
	return nil
}
