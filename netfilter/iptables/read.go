package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// readTime limits how long one call may read tables, because iptables-save may hang.
const readTime = 30 * time.Second

// Read reads weir's sets and rules from the kernel. The caller must read the endpoint records after Read. The records
// then contain every change by the plugin that Read has seen in the sets.
//
// It is no error if a table can't be read: Apply still writes weir's part of the table, and returns an UnknownError.
func (d *Driver) Read(ctx context.Context) error {
	d.heedLate()
	before := d.have
	d.have, d.settled, d.refresh = nil, nil, nil
	d.forward.Forget()
	if err := d.detect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	have, err := d.read(ctx, before)
	if err != nil {
		return err
	}
	d.have, d.fresh = &have, true
	return nil
}

// Unread reports whether the kernel's state is unknown. In this case, the next Apply reads it.
func (d *Driver) Unread() bool {
	d.heedLate()
	return d.have == nil
}

// HasPods reports whether the family's set of all pods may have entries. It returns true if the set had entries when it
// was last read, or has got entries since. Only a new reading shows that the set is empty, because Apply doesn't delete
// strays (netfilter.Result.Strays).
func (d *Driver) HasPods(f conf.Family) bool {
	d.pods[f] = d.pods[f] || d.have != nil && d.have.sets[f.Set(conf.PodsSet)].entries.Len() > 0
	return d.pods[f]
}

func (d *Driver) look(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) error {
	for _, f := range conf.Families {
		d.wanted[f] = want.Has(f)
	}
	if verify == netfilter.All || d.have == nil {
		return d.Read(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	for _, f := range conf.Families {
		mayHave := d.have.tables[f].mayHaveChains()
		if d.wanted[f] && !mayHave { // the tables of this family may never have been read
			d.have.tables[f] = d.readTables(ctx, f, d.have)
			continue
		}
		for _, name := range tablesUsed {
			if d.have.tables[f][name].unknown != nil || (mayHave && verify == netfilter.Rules && name == checks) {
				d.have.tables[f][name] = d.readTable(ctx, f, name, d.have)
			}
		}
	}
	return nil
}

// Reread reads again which sets contain the addresses, because the plugin may have added or deleted these addresses. It
// reads only sets that the plugin may have changed. The plugin adds addresses only to the sets of all pods. It deletes
// addresses from every set that has them. Reread returns true if a set differs from the driver's memory, or if a set
// can't be read.
func (d *Driver) Reread(addrs ...netip.Addr) (changed bool) {
	if d.have == nil {
		return false // the next Apply reads everything
	}
	changed, err := d.reread(addrs)
	if err != nil {
		d.have = nil // the next Apply reads everything, and returns the error
		return true
	}
	if changed {
		d.settled = nil
	}
	return changed
}

func (d *Driver) reread(addrs []netip.Addr) (changed bool, err error) {
	plain := map[conf.Family][]string{}
	for name, s := range d.have.sets {
		switch {
		case name == s.family.Set(conf.PodsSet):
			plain[s.family] = append(plain[s.family], name)
		case s.kind == ruleset.Networks || !slices.ContainsFunc(addrs, s.entries.HasAddress):
		case s.kind == ruleset.Addresses:
			plain[s.family] = append(plain[s.family], name)
		default: // read the whole set: it may have several entries for one address, or numbers of classes
			now, err := d.readSet(name, s)
			if err != nil {
				return changed, err
			}
			d.have.sets[name] = now
			changed = changed || !now.entries.Equal(s.entries)
		}
	}
	for _, a := range addrs {
		e := ruleset.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
		names := plain[conf.FamilyOf(a)]
		in, err := ipset.SetsContaining(a, names)
		if err != nil {
			return changed, err
		}
		for _, name := range names {
			s := d.have.sets[name]
			if _, was := s.entries.Get(e); was == in[name] {
				continue
			}
			changed = true
			if s.entries = s.entries.Without(e); in[name] {
				// The entry gets no comment here, so that Apply writes the entry again, with a comment.
				s.entries = s.entries.With(ruleset.Entry{Element: e})
			}
			d.have.sets[name] = s
		}
	}
	return changed, nil
}

// read reads weir's sets and rules from the kernel. before is the last known state, or nil.
func (d *Driver) read(ctx context.Context, before *state) (state, error) {
	s := state{sets: map[string]set{}}
	d.known = nftnl.KnownChanges{}
	readAt, _ := d.reader.Generation() // 0 if the kernel has no nf_tables
	headers, err := d.sets.Headers()
	if err != nil {
		return s, err
	}
	var was map[string]set
	if before != nil {
		was = before.sets
	}
	for _, h := range headers {
		got, err := d.readSet(h.Name, was[h.Name])
		if errors.Is(err, ipset.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, err
		}
		s.sets[h.Name] = got
	}
	for _, f := range conf.Families {
		d.pods[f] = s.sets[f.Set(conf.PodsSet)].entries.Len() > 0
		s.tables[f] = d.tablesNow(ctx, f, before)
	}
	d.known.ReadAt = readAt
	return s, nil
}

func (d *Driver) tablesNow(ctx context.Context, f conf.Family, before *state) tables {
	all := tables{}
	if d.wanted[f] || before == nil || before.tables[f].mayHaveChains() {
		all = d.readTables(ctx, f, before)
	}
	if !d.wanted[f] && !all.mayHaveChains() {
		return tables{}
	}
	return all
}

func (d *Driver) readTables(ctx context.Context, f conf.Family, before *state) tables {
	all := tables{}
	for _, name := range tablesUsed {
		all[name] = d.readTable(ctx, f, name, before)
	}
	return all
}

// readSet reads a set. If the kernel's list of the set is the same as at the last reading, readSet doesn't parse the
// entries.
func (d *Driver) readSet(name string, before set) (set, error) {
	if before.reading != nil {
		if now, err := d.sets.Print(name); err == nil && now == before.reading.print {
			return before.reading.set(), nil
		}
	}
	n, same := 0, true
	s, err := d.sets.Each(name, func(e ipset.Entry, comment []byte) bool {
		was, ok := before.entries.Get(element(e))
		n++
		same = ok && isComment(was, e, comment, name)
		return same
	})
	if err == nil && same && n == before.entries.Len() && kindOf(s.Header) == before.kind &&
		s.Family == before.family {
		return newReading(s.Print, before).set(), nil
	}
	got, err := d.sets.List(name)
	if err != nil {
		return set{}, err
	}
	entries := make([]ruleset.Entry, len(got.Entries))
	for i, e := range got.Entries {
		entries[i] = ruleset.Entry{Element: element(e), Comment: commentOf(e, name)}
	}
	now := set{kind: kindOf(got.Header), family: got.Family, entries: ruleset.EntriesOf(entries...)}
	return newReading(got.Print, now).set(), nil
}

// readTable reads one table. If the table certainly hasn't changed, readTable returns the known state. Each table has
// its own result, because iptables-save may fail for one table only.
func (d *Driver) readTable(ctx context.Context, f conf.Family, name string, before *state) table {
	var was table
	if before != nil {
		was = before.tables[f][name]
	}
	at, _ := d.reader.Generation() // 0 if the generation is unknown
	if d.Flavour == NFT && at != 0 && was.at == at {
		return was
	}
	there, dormant, err := d.Flavour.exists(d.reader, f, name)
	if err == nil && !there {
		return withBuiltin(name, parseSave(""))
	}
	var now fingerprint
	if err == nil && !dormant {
		now, _ = d.print(f, name, was) // without a fingerprint, the table is read as text
	}
	if now != "" && now == was.print {
		was.at = at
		return was
	}
	t := d.readText(ctx, f, name, before)
	if t.unknown == nil && !t.dormant && len(t.misplaced) == 0 {
		t.print, t.at = now, at
		// The fingerprint covers only the chains that weir had before. If weir now has other chains, the fingerprint doesn't
		// cover all rules that were read, so it counts as unknown.
		if name == "nat" && d.Flavour == NFT && !slices.Equal(t.own(), was.own()) {
			t.print, t.at = "", 0
		}
	}
	return t
}

// readText reads a table as iptables-save prints it. If that fails, or if other programs have rules in a built-in chain
// at a wrong hook, the table counts as unknown. An unknown table has only the rules that nf_tables shows, and none with
// iptables-legacy. There is one exception: if weir needs no rules of the family, and nf_tables shows no chain of
// weir's, the table counts as empty.
func (d *Driver) readText(ctx context.Context, f conf.Family, name string, before *state) table {
	there, dormant, err := d.Flavour.exists(d.reader, f, name)
	if err == nil && !there {
		return withBuiltin(name, parseSave(""))
	}
	var t table
	if err == nil {
		t, err = d.Flavour.read(ctx, f, name)
	}
	var away []string
	if d.Flavour == NFT {
		var errAway error
		if away, errAway = misplaced(d.reader, f, name); errAway == nil && len(away) > 0 {
			errAway = refuseOthers(d.reader, f, name, away)
		}
		if errAway != nil {
			away = nil
			err = errors.Join(err, errAway)
		}
	}
	if t.dormant, t.misplaced = dormant, away; err == nil {
		if name == "nat" {
			t.forgetOthers()
		}
		return t
	}
	u := &unknown{why: fmt.Errorf("table %s of %s can't be read: %w", name, d.Flavour.program(f), err)}
	if before != nil && before.tables[f][name].unknown != nil {
		u.written = before.tables[f][name].unknown.written
	}
	if d.Flavour == NFT {
		if u.seen, err = rulesOf(d.reader, f, name); err != nil {
			u.why = errors.Join(u.why, err)
		}
		if err == nil && !d.wanted[f] && !slices.ContainsFunc(slices.Collect(maps.Keys(u.seen)), conf.OwnChain) {
			return table{rules: map[string][]string{}} // weir has no rules in this table, and needs none
		}
	}
	t = table{unknown: u, dormant: dormant, misplaced: away}
	if before != nil {
		t.numbers = before.tables[f][name].numbers
	}
	return t
}

func (t table) own() (chains []string) {
	for chain := range t.rules {
		if conf.OwnChain(chain) {
			chains = append(chains, chain)
		}
	}
	slices.Sort(chains)
	return chains
}

// forgetOthers removes other programs' chains from t, which must be a table nat, because kube-proxy makes several
// chains there for each Service. forgetOthers keeps the built-in chains, and each chain that contains a rule of weir.
func (t table) forgetOthers() {
	maps.DeleteFunc(t.rules, func(chain string, rules []string) bool {
		return !conf.OwnChain(chain) && !slices.Contains(builtin["nat"], chain) &&
			!slices.ContainsFunc(rules, func(r string) bool { return split(r).own() })
	})
}

// read reads a table that exists. If iptables-save doesn't print the whole table, the error quotes the beginning of the
// output.
func (f Flavour) read(ctx context.Context, family conf.Family, name string) (table, error) {
	out, err := f.save(ctx, family, name)
	if err != nil {
		return table{}, err
	}
	// If another program has added a rule that iptables doesn't know, iptables-nft-save prints only a comment, and doesn't
	// fail.
	if !strings.Contains("\n"+out, "\n*"+name+"\n") || !strings.Contains(out, "\nCOMMIT\n") {
		return table{}, fmt.Errorf("%s-save -t %s doesn't print it: %.200s", f.program(family), name, strings.TrimSpace(out))
	}
	return withBuiltin(name, parseSave(out)), nil
}

func withBuiltin(name string, t table) table {
	for _, chain := range builtin[name] {
		if _, ok := t.rules[chain]; !ok {
			t.rules[chain] = nil
		}
	}
	return t
}

var builtin = map[string][]string{"mangle": {"FORWARD", "INPUT"}, "filter": {"FORWARD"}, "nat": {"POSTROUTING"}}
