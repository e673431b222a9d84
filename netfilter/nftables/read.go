package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// Read reads weir's tables from the kernel. If nf_tables hasn't changed since they were last read, Read keeps the known
// state. The caller must read the endpoint records after Read: the records then cover every change by the plugin that
// Read has seen.
func (d *Driver) Read(context.Context) error {
	d.refresh = nil
	d.forgetLegacy()
	now, _ := d.reader.Generation()
	if d.have != nil && now != 0 && d.knownAt == now {
		d.fresh = true
		return nil
	}
	before := d.have
	d.have, d.knownAt = nil, 0
	d.forgetAccepting()
	d.known = nftnl.KnownChanges{ReadAt: now}
	var next state
	for _, f := range conf.Families {
		var was kernelTable
		if before != nil {
			was = before[f]
		}
		k, err := d.readTable(f)
		if err != nil {
			return err
		}
		if k.exists {
			if err := d.readSets(f, &k, was); err != nil {
				return err
			}
		}
		next[f] = k
	}
	d.have, d.fresh = &next, true
	d.rememberPods()
	if after, _ := d.reader.Generation(); after == now {
		d.knownAt = now
	}
	return nil
}

// Unread reports whether the kernel's state is unknown. In this case, the next Apply reads it.
func (d *Driver) Unread() bool { return d.have == nil }

// HasPods reports whether the family's set of all pods may have elements: the set had elements when it was last read,
// or has got elements since.
func (d *Driver) HasPods(f conf.Family) bool {
	d.pods[f] = d.pods[f] || d.have != nil && d.have[f].sets[f.Set(conf.PodsSet)].entries.Len() > 0
	return d.pods[f]
}

func (d *Driver) look(ctx context.Context, verify netfilter.Verify) error {
	if d.have == nil || verify == netfilter.All {
		return d.Read(ctx)
	}
	if now, _ := d.reader.Generation(); verify == netfilter.Trust || now != 0 && now == d.knownAt {
		return nil
	}
	d.forgetAccepting()
	for _, f := range conf.Families {
		if err := d.rereadRules(f); err != nil {
			d.have, d.knownAt = nil, 0
			return err
		}
	}
	return nil
}

func (d *Driver) rememberPods() {
	for _, f := range conf.Families {
		d.pods[f] = d.have[f].sets[f.Set(conf.PodsSet)].entries.Len() > 0
	}
}

func (d *Driver) rereadRules(f conf.Family) error {
	k, err := d.readTable(f)
	if err != nil {
		return err
	}
	was := d.have[f]
	for name, s := range k.sets {
		if had, ok := was.sets[name]; ok && had.layout == s.layout && !s.unknown {
			k.sets[name] = had
		} else if k.sets[name], err = d.readSet(f, name, s, kernelSet{}); err != nil {
			return err
		}
	}
	d.have[f] = k
	return nil
}

func (d *Driver) readTable(f conf.Family) (k kernelTable, err error) {
	k, t := newKernelTable(), tables[f]
	s, err := d.reader.Table(t)
	if nftnl.IsMissing(err) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	k.exists, k.off = true, s.Flags != 0
	if k.chains, err = d.reader.Rules(t); err != nil {
		return k, err
	}
	sets, err := d.reader.Sets(t)
	if err != nil {
		return k, err
	}
	for name, set := range sets {
		k.sets[name] = kernelSet{layout: set.Layout, unknown: !set.Known}
	}
	if int(s.Objects) != len(k.chains)+len(k.sets) { // some chains have no rules, so k.chains lacks them
		names, err := d.reader.Chains(t)
		if err != nil {
			return k, err
		}
		for _, name := range names {
			if _, ok := k.chains[name]; !ok {
				k.chains[name] = nftnl.Rules{}
			}
		}
	}
	for name := range k.chains {
		wanted, atHook := hookOf(name)
		if !atHook {
			continue
		}
		hook, accepts, err := d.reader.Hook(t, name)
		if err != nil && !errors.Is(err, nftnl.ErrNotExist) {
			return k, err
		}
		if hook == nil || *hook != wanted || !accepts {
			k.misplaced = append(k.misplaced, name)
		}
	}
	return k, nil
}

func hookOf(chain string) (h nftnl.Hook, ok bool) {
	at, ok := map[string]ruleset.Hook{
		conf.ForwardChain: ruleset.CheckForwarded, conf.InputChain: ruleset.CheckToNode,
		conf.PostroutingChain: ruleset.TranslateSource,
	}[chain]
	return hooks[at], ok
}

func (d *Driver) readSets(f conf.Family, k *kernelTable, was kernelTable) (err error) {
	for name, s := range k.sets {
		now, err := d.readSet(f, name, s, was.sets[name])
		if errors.Is(err, nftnl.ErrNotExist) { // the set was deleted after it was listed
			delete(k.sets, name)
			continue
		}
		if err != nil {
			return err
		}
		k.sets[name] = now
	}
	return nil
}

// readSet reads the elements of a set. The parameter before is the last known state of the set. If the elements haven't
// changed, the result shares its memory with the last known state, so that later comparisons are quick.
func (d *Driver) readSet(f conf.Family, name string, s, before kernelSet) (kernelSet, error) {
	if s.unknown {
		return s, nil
	}
	set, t := nftnl.Set{Name: name, Layout: s.layout}, tables[f]
	if before.layout == s.layout && !before.odd && !before.unknown {
		n, same := 0, true
		odd, err := d.reader.Each(t, set, func() { n, same = 0, true }, func(e nftnl.Element) bool {
			to := entryOf(s.layout, e)
			words, ok := before.entries.Get(to.Element)
			same = ok && words == to.Comment
			n++
			return same
		})
		if err != nil || same && !odd && n == before.entries.Len() {
			return before, err
		}
	}
	var entries []ruleset.Entry
	odd, err := d.reader.Each(t, set, func() { entries = nil }, func(e nftnl.Element) bool {
		entries = append(entries, entryOf(s.layout, e))
		return true
	})
	s.odd, s.entries = odd, ruleset.EntriesOf(entries...)
	return s, err
}

type refresh struct {
	sets []key // sets that are still to be read
}

// Refresh reads the kernel's state like Read, but in parts. After each part, it calls the function pause. If pause
// returns true, Refresh returns, and done is false. The next call of Refresh then continues. Between the calls, the
// caller may call other methods. If the state is unknown, or certainly unchanged, Refresh needs only one part.
func (d *Driver) Refresh(ctx context.Context, pause func() bool) (done bool, err error) {
	now, _ := d.reader.Generation()
	if d.have == nil || d.refresh == nil && d.knownAt != 0 && d.knownAt == now {
		return true, d.Read(ctx)
	}
	for {
		done, err = d.refreshPart()
		if err != nil {
			d.have, d.refresh, d.knownAt = nil, nil, 0
			return true, err
		}
		if done || pause() {
			return done, nil
		}
	}
}

// refreshPart reads one set. The first call instead reads the rules, and lists the sets.
func (d *Driver) refreshPart() (done bool, err error) {
	if d.refresh == nil {
		return false, d.beginRefresh()
	}
	r := d.refresh
	if len(r.sets) == 0 {
		d.refresh, d.fresh = nil, true
		d.rememberPods()
		return true, nil
	}
	k := r.sets[0]
	r.sets = r.sets[1:]
	before, ok := d.have[k.family].sets[k.name]
	if !ok { // the set was deleted after it was listed
		return false, nil
	}
	now, err := d.readSet(k.family, k.name, kernelSet{layout: before.layout, unknown: before.unknown}, before)
	if errors.Is(err, nftnl.ErrNotExist) {
		delete(d.have[k.family].sets, k.name)
		return false, nil
	}
	d.settled = nil
	d.have[k.family].sets[k.name] = now
	return false, err
}

func (d *Driver) beginRefresh() error {
	r := &refresh{}
	now, _ := d.reader.Generation() // 0 if the generation is unknown
	d.known, d.knownAt, d.settled = nftnl.KnownChanges{ReadAt: now}, 0, nil
	d.forgetAccepting()
	d.forgetLegacy()
	for _, f := range conf.Families {
		if err := d.rereadRules(f); err != nil {
			return err
		}
		for name := range d.have[f].sets {
			r.sets = append(r.sets, key{f, name})
		}
	}
	// The sets of all pods come last, shortly before the caller reads the endpoint records. If a pod ends between these
	// two readings, its address counts as a stray (netfilter.Result.Strays).
	slices.SortFunc(r.sets, func(a, b key) int {
		return cmp.Or(cmp.Compare(ofAllPods(a), ofAllPods(b)), cmp.Compare(a.name, b.name))
	})
	d.refresh = r
	return nil
}

func ofAllPods(k key) int {
	if k.name == k.family.Set(conf.PodsSet) {
		return 1
	}
	return 0
}

// Reread reads again which sets contain the addresses. The plugin may have added or deleted them. Reread returns true
// if a set differs from the driver's memory, or if a set can't be read. It reads only sets that the plugin may have
// changed: the plugin adds addresses to the sets of all pods only, and deletes addresses from every set that has them.
func (d *Driver) Reread(addrs ...netip.Addr) (changed bool) {
	if d.have == nil {
		return false // the next Apply reads everything
	}
	changed, err := d.reread(addrs)
	if err != nil {
		d.have, d.knownAt = nil, 0 // the next Apply reads everything, and returns the error
		return true
	}
	return changed
}

func (d *Driver) reread(addrs []netip.Addr) (changed bool, err error) {
	var questions []nftnl.Question
	for _, f := range conf.Families {
		for name, s := range d.have[f].sets {
			mayDiffer := name == f.Set(conf.PodsSet) || slices.ContainsFunc(addrs, s.entries.HasAddress)
			switch {
			case s.layout == nftnl.Network || !mayDiffer:
			case s.layout == nftnl.AddressPort || s.layout == nftnl.AddressLink: // an address may have many entries
				now, err := d.readSet(f, name, kernelSet{layout: s.layout}, s)
				if err != nil {
					return changed, err
				}
				changed = changed || !now.same(s)
				d.settled = nil
				d.have[f].sets[name] = now
			default:
				for _, a := range addrs {
					if conf.FamilyOf(a) == f {
						e := nftnl.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
						questions = append(questions, nftnl.Question{
							Table: tables[f], Set: nftnl.Set{Name: name, Layout: s.layout}, Element: e,
						})
					}
				}
			}
		}
	}
	found, err := d.reader.Find(questions)
	if err != nil {
		return changed, fmt.Errorf("look addresses up in the sets: %w", err)
	}
	for i, q := range questions {
		f := conf.FamilyOf(q.Prefix.Addr())
		s := d.have[f].sets[q.Set.Name]
		e := ruleset.Element{Prefix: q.Prefix}
		was, had := s.entries.Get(e)
		switch {
		case found[i] == nil && had:
			s.entries, changed = s.entries.Without(e), true
		case found[i] != nil:
			now := entryOf(s.layout, *found[i])
			if had && now.Comment == was {
				continue
			}
			s.entries, changed = s.entries.With(now), true
		default:
			continue
		}
		d.settled = nil
		d.have[f].sets[q.Set.Name] = s
	}
	return changed, nil
}

// Members returns the addresses of the pods that are in a class, by direction.
//
// Equivalent to: nft list map ip weir weir-in; nft list map ip weir weir-eg (ip6, weir-in6 and weir-eg6 for IPv6)
func (d *Driver) Members() (map[ruleset.Direction]map[netip.Addr]bool, error) {
	members := map[ruleset.Direction]map[netip.Addr]bool{ruleset.Ingress: {}, ruleset.Egress: {}}
	for direction, name := range map[ruleset.Direction]string{
		ruleset.Ingress: conf.IngressMap, ruleset.Egress: conf.EgressMap,
	} {
		for _, f := range conf.Families {
			s := nftnl.Set{Name: f.Set(name), Layout: nftnl.Verdicts}
			_, err := d.reader.Each(tables[f], s, func() {}, func(e nftnl.Element) bool {
				members[direction][e.Prefix.Addr()] = true
				return true
			})
			if err != nil && !errors.Is(err, nftnl.ErrNotExist) {
				return nil, err
			}
		}
	}
	return members, nil
}
