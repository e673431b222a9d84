package kernel

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ipset"
)

// Verify says how much of the kernel's state Apply reads first. What it doesn't read is taken to be what the last Apply
// left there.
type Verify int

const (
	// Trust reads nothing.
	Trust Verify = iota
	// Rules reads the chains that drop: quick, but blind to the sets.
	Rules
	// All reads everything.
	All
)

func (d *Driver) look(ctx context.Context, want policy.Ruleset, verify Verify) error {
	if verify == All || d.have == nil {
		have, err := d.read(ctx, want)
		if err != nil {
			return err
		}
		d.have = &have
		return nil
	}
	for _, f := range conf.Families {
		var err error
		switch holds := d.have.tables[f].holds(); {
		case want.Has(f) && !holds: // what others have there wasn't of interest before
			d.have.tables[f], err = d.readTables(ctx, f, want)
		case holds && verify == Rules:
			d.have.tables[f]["mangle"], err = d.readTable(ctx, f, "mangle")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// concerned says whether the family's tables matter: something of weir's is wanted there, or was there when the driver
// last knew.
func (d *Driver) concerned(f conf.Family, want policy.Ruleset) bool {
	return want.Has(f) || (d.have != nil && d.have.tables[f].holds())
}

// Reread reads anew which sets hold the addresses, and says whether it is others than the last Apply left. The plugin
// puts a new pod's addresses into a set, and takes those of one that goes out of all: of an address that changes hands,
// nothing can be taken to be as it was.
func (d *Driver) Reread(addrs ...netip.Addr) (changed bool) {
	if d.have == nil {
		return false // all is read anyway
	}
	changed, err := d.reread(addrs)
	if err != nil {
		d.have = nil // then all is read, and what is wrong is said there
		return true
	}
	return changed
}

func (d *Driver) reread(addrs []netip.Addr) (changed bool, err error) {
	plain := map[conf.Family][]string{}
	for name, s := range d.have.sets {
		switch s.kind {
		case policy.HashIP:
			plain[s.family] = append(plain[s.family], name)
		case policy.HashIPPort: // an address may have any number of entries
			now, err := d.readSet(name)
			if err != nil {
				return changed, err
			}
			d.have.sets[name] = now
			changed = changed || !maps.Equal(now.entries, s.entries)
		}
	}
	for _, a := range addrs {
		e := policy.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
		names := plain[conf.FamilyOf(a)]
		in, err := ipset.Holding(a, names)
		if err != nil {
			return changed, err
		}
		for _, name := range names {
			entries := d.have.sets[name].entries
			if _, was := entries[e]; was == in[name] {
				continue
			}
			changed = true
			if delete(entries, e); in[name] {
				entries[e] = "" // it is written again with its words
			}
		}
	}
	return changed, nil
}

// read lists weir's sets and the tables.
func (d *Driver) read(ctx context.Context, want policy.Ruleset) (state, error) {
	s := state{sets: map[string]set{}}
	d.readAt, d.own = 0, ownChanges{}
	readAt, _ := Generation() // without nf_tables there is none
	headers, err := d.sets.Headers()
	if err != nil {
		return s, err
	}
	for _, h := range headers {
		got, err := d.readSet(h.Name)
		if errors.Is(err, ipset.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, err
		}
		s.sets[h.Name] = got
	}
	for _, f := range conf.Families {
		if s.tables[f], err = d.readTables(ctx, f, want); err != nil {
			return s, err
		}
	}
	d.readAt = readAt
	return s, nil
}

// readTables lists the family's tables as far as they matter. Where nothing is wanted, and it isn't known what is there,
// it looks for leftovers; that there is no iptables for the family then doesn't matter.
func (d *Driver) readTables(ctx context.Context, f conf.Family, want policy.Ruleset) (tables, error) {
	all := tables{}
	if !d.concerned(f, want) && (d.have != nil || !d.leftovers(ctx, f)) {
		return all, nil
	}
	out, err := d.Flavour.save(ctx, f) // starting the program is most of what it costs, so all are read at once
	if err != nil {
		return nil, err
	}
	for _, name := range tablesUsed {
		all[name] = withBuiltin(name, parseSave(section(out, name)))
	}
	return all, nil
}

func (d *Driver) leftovers(ctx context.Context, f conf.Family) bool {
	out, err := d.Flavour.save(ctx, f)
	return err == nil && strings.Contains(out, chainPrefix)
}

func (d *Driver) readSet(name string) (set, error) {
	got, err := d.sets.List(name)
	if err != nil {
		return set{}, err
	}
	entries := make(map[policy.Element]string, len(got.Entries))
	for _, e := range got.Entries {
		entries[policy.Element{Prefix: e.Prefix, Proto: policy.Protocol(e.Proto), Port: e.Port}] = e.Comment
	}
	return set{policy.SetType(got.Type), got.Family, entries}, nil
}

func (d *Driver) readTable(ctx context.Context, f conf.Family, name string) (table, error) {
	out, err := d.Flavour.save(ctx, f, name)
	if err != nil {
		return nil, err
	}
	return withBuiltin(name, parseSave(out)), nil
}

// withBuiltin adds the table's built-in chains: one that nobody has used yet is not printed, but has them.
func withBuiltin(name string, t table) table {
	for _, chain := range builtin[name] {
		if _, ok := t[chain]; !ok {
			t[chain] = nil
		}
	}
	return t
}

// builtin chains that weir has jumps in.
var builtin = map[string][]string{"mangle": {"FORWARD", "INPUT"}, "filter": {"FORWARD"}, "nat": {"POSTROUTING"}}
