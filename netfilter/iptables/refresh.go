package iptables

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
)

type refresh struct {
	sets   []string // names of the sets that are still to be read
	tables []conf.Family
}

// Refresh reads the kernel's state like Read, but in parts. After each part, it calls the function pause. If pause
// returns true, Refresh returns, and done is false. The next call of Refresh then continues. Between the calls, the
// caller may call other methods. If the kernel's state is unknown, Refresh reads it in one part.
func (d *Driver) Refresh(ctx context.Context, pause func() bool) (done bool, err error) {
	if d.refresh == nil {
		d.heedLate()
		d.forward.Forget()
	}
	if d.have == nil || d.Flavour == "" {
		return true, d.Read(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	for {
		done, err = d.refreshPart(ctx)
		if err != nil {
			d.have, d.settled, d.refresh = nil, nil, nil
			return true, err
		}
		if done || pause() {
			return done, nil
		}
	}
}

func (d *Driver) refreshPart(ctx context.Context) (done bool, err error) {
	r := d.refresh
	switch {
	case r == nil:
		d.refresh, err = d.beginRefresh()
		return false, err
	case len(r.sets) > 0:
		name := r.sets[0]
		r.sets = r.sets[1:]
		return false, d.refreshSet(name)
	case len(r.tables) > 0:
		f := r.tables[0]
		r.tables = r.tables[1:]
		d.refreshTables(ctx, f)
		return false, nil
	}
	// Rules may have changed since their tables were read. This change isn't lost, because Watch reports a new generation
	// for it.
	d.refresh, d.fresh = nil, true
	return true, nil
}

func (d *Driver) beginRefresh() (*refresh, error) {
	headers, err := d.sets.Headers()
	if err != nil {
		return nil, err
	}
	r := &refresh{tables: slices.Clone(conf.Families[:])}
	exists := map[string]bool{}
	for _, h := range headers {
		r.sets, exists[h.Name] = append(r.sets, h.Name), true
	}
	for name := range d.have.sets {
		if !exists[name] {
			delete(d.have.sets, name)
			d.settled = nil
		}
	}
	for _, f := range conf.Families {
		d.pods[f] = d.pods[f] && exists[f.Set(conf.PodsSet)]
	}
	// The sets of all pods come last, shortly before the caller reads the endpoint records. If a pod ends between these
	// two readings, its address counts as a stray (netfilter.Result.Strays), so there should be little time between them.
	slices.SortStableFunc(r.sets, func(a, b string) int { return cmp.Compare(ofAllPods(a), ofAllPods(b)) })
	return r, nil
}

func ofAllPods(name string) int {
	for _, f := range conf.Families {
		if name == f.Set(conf.PodsSet) {
			return 1
		}
	}
	return 0
}

func (d *Driver) refreshSet(name string) error {
	before, had := d.have.sets[name]
	now, err := d.readSet(name, before)
	if name == now.family.Set(conf.PodsSet) {
		d.pods[now.family] = now.entries.Len() > 0
	}
	switch {
	case errors.Is(err, ipset.ErrNotExist): // the set was destroyed after it was listed
		delete(d.have.sets, name)
	case err != nil:
		return err
	default:
		d.have.sets[name] = now
	}
	if err != nil || !had || now.kind != before.kind || now.family != before.family || !now.entries.Same(before.entries) {
		d.settled = nil
	}
	return nil
}

// refreshTables reads a family's tables. Before the first family, it stores the generation of nf_tables. Then d.known
// needs no list of the driver's earlier changes, because the driver knows all generations up to the stored one.
func (d *Driver) refreshTables(ctx context.Context, f conf.Family) {
	readAt, _ := d.reader.Generation() // 0 if the generation is unknown
	if f == conf.Families[0] {
		d.known = nftnl.KnownChanges{ReadAt: readAt}
	}
	before := d.have.tables[f]
	d.have.tables[f] = d.tablesNow(ctx, f, d.have)
	if !before.same(d.have.tables[f]) {
		d.settled = nil
	}
}

// same reports whether the tables certainly had the same rules at two readings. The receiver t has the earlier
// reading, and the parameter now has the later reading.
func (t tables) same(now tables) bool {
	return len(t) == len(now) && !slices.ContainsFunc(tablesUsed, func(name string) bool {
		_, had := t[name]
		a, b := t[name], now[name]
		return had && (a.print == "" || a.print != b.print || b.dormant || len(b.misplaced) > 0 || b.unknown != nil)
	})
}
