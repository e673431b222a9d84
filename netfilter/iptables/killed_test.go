package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestNoStepOpensAfterAKill: each plan is stopped after a random step, and then another program changes rules and sets.
// No step of the next plan may accept a packet that both the state before the plan and the wanted ruleset drop.
func TestNoStepOpensAfterAKill(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 77))
		s := policytest.State(r)
		m := newModel(t)
		for round := range 6 {
			done := m.tamper(r)
			want := policytest.Bounds(r).Merge(policy.Compile(s), nil)
			p := m.planTo(want, r.IntN(8) == 0)
			stop := r.IntN(len(p.before) + len(p.across) + len(p.after) + 6)
			if round == 0 || round == 5 {
				stop = -1
			} else if stop == 0 { // the agent is killed while it creates sets
				p.create = withoutSome(r, p.create)
			}
			packets, after := policytest.Packets(s), simulator(t, want)
			var denied []ruleset.Packet
			for _, p := range packets {
				if round > 0 && !m.passes(p) && !after.Allows(p) {
					denied = append(denied, p)
				}
			}
			m.planUntil(p, stop, func(step string) {
				done = append(done, step)
				for _, p := range denied {
					if m.passes(p) {
						t.Fatalf("seed %d, round %d: %+v passes after %q", seed, round, p, done)
					}
				}
			})
			for _, p := range packets {
				if stop < 0 && m.passes(p) != after.Allows(p) {
					t.Fatalf("seed %d, round %d: in the end %+v passes: %v", seed, round, p, m.passes(p))
				}
			}
			s = policytest.Change(r, s)
		}
	}
}

func (m *model) planTo(want ruleset.Ruleset, plain bool) plan {
	for _, f := range conf.Families {
		t := m.tables[f][checks]
		t.numbers = nil
		m.tables[f][checks] = t
	}
	if plain {
		return makePlan(m.state, lower(want))
	}
	return makePlan(m.state, lowerOnto(m.state, want))
}

func (m *model) planUntil(p plan, stop int, after func(step string)) {
	type kill struct{}
	defer func() {
		if was := recover(); was != nil && was != (kill{}) {
			panic(was)
		}
	}()
	n := 0
	m.plan(p, func(step string) {
		after(step)
		if n == stop {
			panic(kill{})
		}
		n++
	})
}

func (m *model) passes(p ruleset.Packet) bool {
	chain := "FORWARD"
	if p.Out == "" {
		chain = "INPUT"
	}
	w := walk{model: m, Packet: p, family: conf.FamilyOf(p.Dst)}
	return w.chain(chain) != "DROP"
}

func withoutSome(r *rand.Rand, sets []ruleset.Set) []ruleset.Set {
	sets = slices.Clone(sets)
	for i, s := range sets {
		for e := range s.Entries.All() {
			if r.IntN(2) == 0 {
				sets[i].Entries = sets[i].Entries.Without(e.Element)
			}
		}
	}
	return sets
}

func (m *model) tamper(r *rand.Rand) (done []string) {
	for _, name := range slices.Sorted(maps.Keys(m.sets)) {
		s := m.sets[name]
		if s.kind != numberedPods || r.IntN(4) > 0 {
			continue
		}
		done = append(done, "another program changes "+name)
		for e := range s.entries.All() {
			switch r.IntN(4) {
			case 0:
				e.Comment = withNumber(r.IntN(7), "x")
				s.entries = s.entries.With(e)
			case 1:
				s.entries = s.entries.Without(e.Element)
			}
		}
		a := netip.AddrFrom4([4]byte{10, 88, 0, byte(r.IntN(20))})
		if s.family == conf.IPv4 {
			e := ruleset.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
			s.entries = s.entries.With(ruleset.Entry{Element: e, Comment: withNumber(r.IntN(7), "x")})
		}
		m.sets[name] = s
	}
	for _, f := range conf.Families {
		t := m.tables[f][checks]
		t.rules = maps.Clone(t.rules)
		for _, c := range slices.Sorted(maps.Keys(t.rules)) {
			rules := t.rules[c]
			if !conf.OwnChain(c) || len(rules) == 0 || r.IntN(20) > 0 {
				continue
			}
			if i := r.IntN(len(rules)); split(rules[i]).target != "DROP" {
				done = append(done, fmt.Sprintf("another program deletes from %s: %s", c, rules[i]))
				t.rules[c] = slices.Delete(slices.Clone(rules), i, i+1)
			}
		}
		m.tables[f] = maps.Clone(m.tables[f])
		m.tables[f][checks] = t
	}
	return done
}
