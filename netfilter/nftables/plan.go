package nftables

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// plan is a transaction from one state of the kernel to another. Its requests are in an order that the kernel accepts:
// an object can be deleted only when nothing uses it any more.
type plan struct {
	batch nftnl.Batch
	// alone is true if each new element has a request of its own, so that a refusal names the element.
	alone bool
	rules bool // true if rules change
	// closes is true if the new state may deny an established connection that the old state allows.
	closes bool
	// closed has the addresses that leave sets of peers, if the plan does nothing else (onlyCloses). Otherwise it is nil.
	closed     []netip.Addr
	onlyCloses bool
	// strays are the addresses in the sets of all pods for which no attachment is known. The plan doesn't delete them,
	// because a new attachment may not be known yet.
	strays  []netip.Addr
	deletes []nftnl.Question
	// next is the state after the plan. adds is true for a family whose table also keeps the sets and chains that next
	// lacks.
	next state
	adds [len(conf.Families)]bool
}

// advance makes s the state after the plan.
func (s *state) advance(p *plan) {
	for f := range s {
		if now := p.next[f]; p.adds[f] {
			maps.Copy(s[f].sets, now.sets)
			maps.Copy(s[f].chains, now.chains)
		} else {
			s[f] = now
		}
	}
}

// These types say what a request of the transaction is about. With them, a refusal by the kernel names the refused
// part.
type (
	aSet struct {
		family conf.Family
		set    set
	}
	elements struct{ aSet }
	aRule    struct {
		family conf.Family
		rule   rule
	}
)

func makePlan(have state, want lowered, alone bool) *plan {
	p := &plan{alone: alone, onlyCloses: true, next: have}
	for _, f := range conf.Families {
		switch {
		case want[f] != nil && want[f].stays():
		case want[f] != nil:
			p.table(have[f], want[f])
		case have[f].exists:
			p.batch.DeleteTable(tables[f])
			p.next[f], p.rules, p.closes, p.onlyCloses = newKernelTable(), true, true, false
		}
	}
	if !p.onlyCloses {
		p.closed = nil
	}
	return p
}

func (p *plan) table(have kernelTable, want *table) {
	f := want.family
	at := tables[f]
	strays := p.straysIn(have, want)
	p.adds[f] = want.partial && have.exists
	if have.exists && have.mustBeMadeAnew(want) {
		p.batch.DeleteTable(at)
		have, p.adds[f] = newKernelTable(), false
	}
	if !have.exists {
		have = newKernelTable() // the table is made anew, so its old content doesn't count
	}
	next := kernelTable{
		exists: true, sets: make(map[string]kernelSet, len(want.sets)),
		chains: make(map[string]nftnl.Rules, len(want.chains)),
	}
	if !have.exists || have.off {
		p.batch.AddTable(at, nftnl.WeirTableComment)
		p.rules, p.closes, p.onlyCloses = true, true, false
	}
	for _, s := range want.sets {
		if _, ok := have.sets[s.Name]; !ok {
			p.batch.AddSet(at, s.Set, aSet{f, s})
		}
	}
	for _, c := range want.chains {
		if _, ok := have.chains[c.Name]; !ok {
			p.batch.AddChain(at, c.Chain)
		}
	}
	for _, s := range want.sets {
		next.sets[s.Name] = p.elements(have, want, s, strays)
	}
	for _, c := range want.chains {
		next.chains[c.Name] = c.written
		p.chain(have, f, c)
	}
	if !want.partial {
		p.remove(have, want)
	}
	p.next[f] = next
}

// mustBeMadeAnew reports whether the table must be deleted and made anew, because a chain has a wrong hook or policy,
// or a set has a wrong type.
func (k kernelTable) mustBeMadeAnew(want *table) bool {
	return len(k.misplaced) > 0 || slices.ContainsFunc(want.sets, func(s set) bool {
		had, ok := k.sets[s.Name]
		return ok && (had.unknown || had.layout != s.Layout)
	})
}

func (p *plan) straysIn(have kernelTable, want *table) (strays []ruleset.Entry) {
	pods, ok := want.find(want.family.Set(conf.PodsSet))
	if !ok {
		return nil
	}
	for d := range have.sets[pods.Name].entries.Diff(pods.entries) {
		if !d.Has {
			strays = append(strays, ruleset.Entry{Element: d.Key, Comment: d.Was})
			p.strays = append(p.strays, d.Key.Prefix.Addr())
		}
	}
	return strays
}

func (p *plan) elements(have kernelTable, want *table, s set, strays []ruleset.Entry) kernelSet {
	at := tables[want.family]
	had := have.sets[s.Name]
	next := kernelSet{layout: s.Layout, entries: s.entries}
	var adds, dels []nftnl.Element
	if had.odd {
		p.batch.FlushSet(at, s.Name)
		p.closes, p.onlyCloses = true, false
		had.entries = ruleset.Entries{}
	}
	for d := range had.entries.Diff(s.entries) {
		if s.role == ruleset.Attached && !d.Has {
			continue
		}
		if d.Had {
			dels = append(dels, s.elementOf(ruleset.Entry{Element: d.Key, Comment: d.Was}))
		}
		if d.Has {
			adds = append(adds, s.elementOf(ruleset.Entry{Element: d.Key, Comment: d.Now}))
		}
		denies := d.Had && !d.Has
		if s.role == ruleset.Members {
			denies = d.Had && (!d.Has || !within(have, want, target(d.Was), target(d.Now)))
		}
		p.record(s.role, d.Key, denies && !slices.Contains(p.strays, d.Key.Prefix.Addr()), d.Had && !d.Has)
	}
	if s.role == ruleset.Attached {
		for _, e := range strays {
			next.entries = next.entries.With(e)
			// If the table was made anew, the kernel no longer has the element.
			if _, ok := had.entries.Get(e.Element); !ok {
				adds = append(adds, s.elementOf(e))
			}
		}
	}
	for _, e := range dels {
		p.deletes = append(p.deletes, nftnl.Question{Table: at, Set: s.Set, Element: e})
	}
	p.batch.DeleteElements(at, s.Set, dels)
	p.batch.AddElements(at, s.Set, adds, elements{aSet{want.family, s}}, p.alone)
	return next
}

func (p *plan) record(role ruleset.SetRole, e ruleset.Element, denies, leaves bool) {
	switch {
	case role == ruleset.Members:
		p.onlyCloses, p.closes = false, p.closes || denies
	case role != ruleset.Peers || !leaves || !e.Prefix.IsValid() || !e.Prefix.IsSingleIP():
		p.onlyCloses, p.closes = false, p.closes || role == ruleset.Peers && denies
	default:
		p.closes, p.closed = p.closes || denies, append(p.closed, e.Prefix.Addr())
	}
}

func target(value string) string { v, _ := verdictIn(value); return v.Chain }

// within reports whether the old chain (was) certainly allows no more than the new chain (now). An empty name stands
// for no chain, which allows everything.
func within(have kernelTable, want *table, was, now string) bool {
	if was == now || now == "" {
		return true
	}
	i := slices.IndexFunc(want.chains, func(c chain) bool { return c.Name == now })
	if was == "" || i < 0 {
		return false
	}
	allowed := map[nftnl.Sum]bool{}
	for j, r := range want.chains[i].rules {
		if r.Action != ruleset.Return {
			break
		}
		allowed[want.chains[i].written.Sums[j]] = true
	}
	sums := have.chains[was].Sums
	for j, s := range sums {
		if !allowed[s] && j < len(sums)-1 {
			return false
		}
	}
	return have.chains[was].Drops
}

func (p *plan) chain(have kernelTable, f conf.Family, c chain) {
	had, exists := have.chains[c.Name]
	if exists && slices.Equal(had.Sums, c.written.Sums) {
		return
	}
	p.rules, p.onlyCloses = true, false
	p.closes = p.closes || exists || !isClass(c.Name)
	if len(had.Sums) > 0 {
		p.batch.FlushChain(tables[f], c.Name)
	}
	for _, r := range c.rules {
		written, _ := r.write(f)
		p.batch.AddRule(tables[f], c.Name, written, aRule{f, r})
	}
}

func (p *plan) remove(have kernelTable, want *table) {
	at := tables[want.family]
	wanted := map[string]bool{}
	for _, c := range want.chains {
		wanted[c.Name] = true
	}
	var chains []string
	for name, rules := range have.chains {
		if !wanted[name] {
			chains = append(chains, name)
			if len(rules.Sums) > 0 {
				p.batch.FlushChain(at, name)
			}
			p.closes = p.closes || !isClass(name)
		}
	}
	for _, name := range chains { // all chains are empty now, so none leads to another
		p.batch.DeleteChain(at, name)
		p.rules, p.onlyCloses = true, false
	}
	for name := range have.sets {
		if _, ok := want.find(name); !ok {
			p.batch.DeleteSet(at, name)
		}
	}
}

func isClass(name string) bool {
	switch conf.KindOfChain(name) {
	case conf.ChainOfIngress, conf.ChainOfEgress:
		return true
	}
	return false
}
