package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
)

// TestMerge: a merged random ruleset allows the same packets as the unmerged one. After each of a sequence of random
// changes, a Merger gives the same result as Bounds.Merge.
func TestMerge(t *testing.T) {
	sequences := 300
	if testing.Short() {
		sequences = 50
	}
	var seen mergeCounts
	for seed := range sequences {
		mergeSequence(t, uint64(seed), &seen)
		if t.Failed() {
			return
		}
	}
	t.Logf("%+v", seen)
	for what, n := range map[string]int{
		"merges": seen.merges, "merges with ports": seen.withPorts, "merges of networks": seen.networks,
		"refused": seen.refused, "without room": seen.noRoom, "allowed": seen.allowed, "denied": seen.denied,
	} {
		if n < sequences {
			t.Errorf("%s: only %d in %d sequences", what, n, sequences)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { mergeSequence(t, seed, &mergeCounts{}) })
}

type mergeCounts struct{ merges, withPorts, networks, refused, noRoom, allowed, denied int }

func mergeSequence(t *testing.T, seed uint64, seen *mergeCounts) {
	t.Helper()
	r := &randomRules{rand.New(rand.NewPCG(seed, 3))}
	m := NewMerger(Bounds{
		Sets: r.IntN(5), Large: r.IntN(5), Lists: r.IntN(4), ListLen: 1 + r.IntN(8), SetLen: one(r, 3, 6, 100),
		Entries: one(r, 30, 1000), Pairs: one(r, 20, 1000),
	})
	now, refused := r.policies(), Refused{}
	var keptText []string
	var old []Ruleset
	for step := range 25 {
		want := m.bounds.Merge(now, refused)
		got := m.Merge(now, refused)
		if g, w := text(got), text(want); g != w {
			t.Fatalf("seed %d, step %d: the Merger gives\n%s\nMerge gives\n%s\nof\n%s", seed, step, g, w, text(now))
		}
		if !slices.EqualFunc(got.Chains, want.Chains, Chain.Equal) {
			t.Fatalf("seed %d, step %d: the rules' policies differ", seed, step)
		}
		r.compareMerged(t, now, got, seen)
		seen.count(m, refused)
		old, keptText = append(old, got), append(keptText, text(got))
		now, refused = r.next(now, got)
	}
	m.Merge(Ruleset{}, refused)
	if d := m.decision; len(d.plans)+len(d.weights)+len(d.staying)+len(m.sets)+d.entries+d.pairs != 0 {
		t.Fatalf("seed %d: after everything is gone, the Merger still has %+v", seed, d)
	}
	for i := range old {
		if text(old[i]) != keptText[i] {
			t.Fatalf("seed %d: the ruleset of step %d has changed", seed, i)
		}
	}
}

func (c *mergeCounts) count(m *Merger, refused Refused) {
	for _, x := range m.decision.merges {
		c.merges++
		switch x.kind {
		case AddressPorts:
			c.withPorts++
		case Networks:
			c.networks++
		}
	}
	if len(refused) > 0 {
		c.refused++
	}
	if !m.decision.fit {
		c.noRoom++
	}
}

func text(r Ruleset) string {
	var b strings.Builder
	_ = r.Write(&b)
	return b.String()
}

func (r *randomRules) compareMerged(t *testing.T, unmerged, merged Ruleset, seen *mergeCounts) {
	t.Helper()
	want, err := NewSimulator(unmerged)
	if err != nil {
		t.Fatal(err)
	}
	got, err := NewSimulator(merged)
	if err != nil {
		t.Fatal(err)
	}
	index := NewIndex(merged)
	for range 40 {
		p := r.packet()
		p.In, p.Out = "weir0", "weir0"
		p.Port = uint16(r.IntN(8))
		allowed := want.Allows(p)
		if allowed {
			seen.allowed++
		} else {
			seen.denied++
		}
		if got.Allows(p) != allowed || index.Allows(p) != allowed {
			t.Fatalf("%+v: allowed %v; merged: %v, by the index %v:\n%s\n%s", p, allowed, got.Allows(p), index.Allows(p),
				text(unmerged), text(merged))
		}
	}
}

func (r *randomRules) policies() Ruleset {
	var all Ruleset
	for i := range 3 + r.IntN(10) {
		all.Sets = append(all.Sets, r.peers(fmt.Sprintf("weir-%02d", i)))
	}
	all.Sets = append(all.Sets, Set{
		Name: "weir-ports", Kind: Ports, Role: Peers, Opens: true,
		Entries: EntriesOf(Entry{Element: Element{Port: 2}}, Entry{Element: Element{Port: 5}}),
	})
	all.Chains = append(all.Chains, Chain{Name: "forward", Hook: CheckForwarded, Rules: []Rule{
		{Src: netip.MustParsePrefix("10.0.0.0/25"), Action: GoTo, To: "chain0"},
		{Dst: netip.MustParsePrefix("10.0.0.8/29"), Action: Jump, To: "chain1"},
		{Action: Jump, To: "chain2"},
	}})
	for i := range 3 {
		all.Chains = append(all.Chains, r.class(fmt.Sprint("chain", i), all.Sets))
	}
	return all
}

func (r *randomRules) peers(name string) Set {
	s := Set{Name: name, Kind: one(r, Addresses, Addresses, Networks), Role: Peers, Opens: true}
	for range r.IntN(one(r, 2, 5, 9)) {
		s.Entries = s.Entries.With(r.entry(s.Kind))
	}
	return s
}

func (r *randomRules) entry(k SetKind) Entry {
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(16))}), 32)
	if k == Networks {
		p, _ = p.Addr().Prefix(one(r, 1, 8, 28, 30, 31, 32))
	}
	return Entry{Element{Prefix: p}, one(r, "ns/a", "ns/a", "ns/a", "ns/b", "")}
}

func (r *randomRules) class(name string, sets []Set) Chain {
	c := Chain{Name: name}
	by := one(r, Source, Destination)
	for range r.IntN(one(r, 5, 30)) {
		c.Rules = append(c.Rules, r.peerRule(sets, by))
	}
	c.Rules = append(c.Rules, Rule{Action: Log, To: "x"}, Rule{Action: Drop})
	return c
}

func (r *randomRules) peerRule(sets []Set, by Part) Rule {
	policy := one(r, "ns/a", "ns/b", "ns/c")
	rule := Rule{Action: Return, Policies: []string{policy}, Proto: one(r, TCP, TCP, TCP, UDP, "", ICMP), Comment: policy}
	seldom := func() bool { return r.IntN(30) == 0 }
	if rule.Proto == TCP || rule.Proto == UDP {
		for range r.IntN(3) {
			first := uint16(r.IntN(7))
			rule.Ports = append(rule.Ports, PortRange{first, first + uint16(r.IntN(one(r, 1, 1, 3)))})
		}
	}
	if !seldom() {
		rule.Sets = []SetMatch{{Name: sets[r.IntN(len(sets)-1)].Name, By: by, Not: seldom()}}
	}
	if r.IntN(8) == 0 {
		rule.Sets = append(rule.Sets, SetMatch{Name: "weir-ports", By: DestinationPort, Not: seldom()})
	}
	switch r.IntN(30) {
	case 0, 1, 2:
		rule.Action = one(r, Drop, Log)
	case 3:
		rule.Policies = nil
	case 4:
		rule.Src = r.network()
	}
	return rule
}

func (r *randomRules) next(now, merged Ruleset) (Ruleset, Refused) {
	refused := Refused{}
	now.Sets = slices.Clone(now.Sets)
	peers := now.Sets[:len(now.Sets)-1]
	for range one(r, 0, 1, 1, 1, 4) { // entries are added and deleted
		s := &peers[r.IntN(len(peers))]
		if e := r.entry(s.Kind); r.IntN(2) == 0 {
			s.Entries = s.Entries.With(e)
		} else {
			s.Entries = s.Entries.Without(e.Element)
		}
	}
	if r.IntN(4) == 0 { // an address moves to another pod, in all sets
		was, is := r.entry(Addresses), one(r, "ns/x", "ns/y")
		for i := range peers {
			if _, ok := peers[i].Entries.Get(was.Element); ok {
				peers[i].Entries = peers[i].Entries.With(Entry{was.Element, is})
			}
		}
	}
	if r.IntN(4) == 0 { // a policy is added, deleted or changed
		now.Chains = slices.Clone(now.Chains)
		c := &now.Chains[1+r.IntN(3)]
		if c.Rules = slices.Clone(c.Rules); r.IntN(2) == 0 {
			c.Rules = slices.Insert(c.Rules, r.IntN(len(c.Rules)-1), r.peerRule(now.Sets, Source))
		} else if n := len(c.Rules) - 2; n > 0 {
			c.Rules = slices.Delete(c.Rules, n-1, n)
		}
	}
	if r.IntN(4) == 0 { // a class is added or deleted
		now.Chains = slices.Clone(now.Chains)
		if extra := now.Chains[4:]; len(extra) > 0 && r.IntN(2) == 0 {
			i := 4 + r.IntN(len(extra))
			now.Chains = slices.Delete(now.Chains, i, i+1)
		} else if c := r.class(fmt.Sprint("extra", r.IntN(100)), now.Sets); r.IntN(2) == 0 {
			c.Rules = now.Chains[1+r.IntN(3)].Rules
			now.Chains = append(now.Chains, c)
		} else {
			now.Chains = append(now.Chains, c)
		}
		slices.SortFunc(now.Chains[4:], func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
		now.Chains = slices.CompactFunc(now.Chains, func(a, b Chain) bool { return a.Name == b.Name })
	}
	if r.IntN(10) == 0 { // a set is added or deleted
		name := fmt.Sprintf("weir-%02d", r.IntN(13))
		i, ok := find(now.Sets, name)
		if !ok {
			now.Sets = slices.Insert(now.Sets, i, r.peers(name))
		} else if len(peers) > 2 {
			now.Sets = slices.Delete(now.Sets, i, i+1)
		}
		peers = now.Sets[:len(now.Sets)-1]
	}
	if r.IntN(10) == 0 { // a set of another kind replaces a set
		i := r.IntN(len(peers))
		peers[i] = r.peers(peers[i].Name)
	}
	if r.IntN(8) == 0 { // the kernel refuses a part of the ruleset
		s := merged.Sets[r.IntN(len(merged.Sets))]
		refused[one(r, Refusal{Set: s.Name}, Refusal{SetKind: s.Kind}, Refusal{Kind: "tcp, source and port in a set"},
			Refusal{Set: s.Name, Element: Element{Prefix: netip.MustParsePrefix("10.0.0.1/32")}})] = "why"
	}
	return now, refused
}

// TestMergedShapes: 1,000 rules with one set and one port each are merged. If the rules have at most eight different
// ports (Bounds.Lists), the result is one rule for each port. If they have more different ports, the result is one
// rule, which looks up addresses together with ports.
func TestMergedShapes(t *testing.T) {
	const policies = 1000
	single := func(n int) PortRange { return PortRange{uint16(n), uint16(n)} }
	shape := func(ports func(i int) PortRange) Ruleset {
		r := Ruleset{Chains: []Chain{{Name: "WEIR-IN-X"}}}
		for i := range policies {
			name := fmt.Sprintf("weir-sel-%04d", i)
			r.Sets = append(r.Sets, Set{
				Name: name, Kind: Addresses, Role: Peers, Opens: true, Entries: EntriesOf(Entry{Element: Element{
					Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32),
				}}),
			})
			r.Chains[0].Rules = append(r.Chains[0].Rules, Rule{
				Proto: TCP, Ports: []PortRange{ports(i)}, Sets: []SetMatch{{Name: name, By: Source}}, Action: Return,
				Policies: []string{fmt.Sprint("ns/", i)},
			})
		}
		return r
	}
	for name, tc := range map[string]struct {
		ports func(i int) PortRange
		rules int
		kind  SetKind
		each  int // entries of each merged set
	}{
		"one port":    {func(int) PortRange { return single(80) }, 1, Addresses, policies},
		"five ports":  {func(i int) PortRange { return single(1 + i%5) }, 5, Addresses, policies / 5},
		"1,000 ports": {func(i int) PortRange { return single(1 + i) }, 1, AddressPorts, policies},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(shape(tc.ports), nil)
			if len(got.Chains[0].Rules) != tc.rules || len(got.Sets) != tc.rules {
				t.Fatalf("%d rules and %d sets", len(got.Chains[0].Rules), len(got.Sets))
			}
			s := got.Sets[0]
			if s.Kind != tc.kind || s.Entries.Len() != tc.each || !strings.HasPrefix(s.Name, conf.MergedSets) {
				t.Errorf("%s: %s with %d entries", s.Name, s.Kind, s.Entries.Len())
			}
		})
	}
}

// TestLargeSetsStayApart: three sets (Bounds.Sets) aren't merged. Of more sets, large sets stay single as long as the
// rules then need at most three look-ups, and all other sets become one merged set. If not all large sets can stay
// single, those with the largest size class (number of binary digits of the size) do. Sets of one size class are
// ordered by name. A set with more than Bounds.SetLen entries is never merged.
func TestLargeSetsStayApart(t *testing.T) {
	b := UsualBounds()
	for name, tc := range map[string]struct {
		sizes []int
		rules int
		apart []int // indexes of the sets that aren't merged
	}{
		"three":     {[]int{1, 2, 3}, 3, []int{0, 1, 2}},
		"small":     {[]int{1, b.Large, 3, 4}, 1, nil},
		"large":     {[]int{1, 2 * b.Large, 3, b.SetLen}, 3, []int{1, 3}},
		"too large": {[]int{1, 2, b.SetLen + 1, 3}, 2, []int{2}},
		"all large": {[]int{2 * b.Large, 4 * b.Large, 4 * b.Large, 5 * b.Large, b.Large + 1}, 3, []int{1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Ruleset{Chains: []Chain{{Name: "WEIR-IN-X"}}}
			for i, size := range tc.sizes {
				s := Set{Name: fmt.Sprint("weir-sel-", i), Kind: Addresses, Role: Peers, Opens: true}
				var entries []Entry
				for k := range size {
					a := netip.AddrFrom4([4]byte{10, byte(i), byte(k >> 8), byte(k)})
					entries = append(entries, Entry{Element: Element{Prefix: netip.PrefixFrom(a, 32)}})
				}
				s.Entries = EntriesOf(entries...)
				r.Sets = append(r.Sets, s)
				r.Chains[0].Rules = append(r.Chains[0].Rules, Rule{
					Sets: []SetMatch{{Name: s.Name, By: Source}}, Action: Return, Policies: []string{"ns/a"},
				})
			}
			got := Merge(r, nil)
			var apart []int
			for i := range tc.sizes {
				if _, ok := find(got.Sets, fmt.Sprint("weir-sel-", i)); ok {
					apart = append(apart, i)
				}
			}
			if len(got.Chains[0].Rules) != tc.rules || !slices.Equal(apart, tc.apart) {
				t.Errorf("%d rules, sets %v apart; want %d, %v", len(got.Chains[0].Rules), apart, tc.rules, tc.apart)
			}
		})
	}
}
