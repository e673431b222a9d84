package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
)

// TestGolden compares the lowered rulesets with testdata/NAME.rules. To write these files: go test ./netfilter/iptables
// -run Golden -update
func TestGolden(t *testing.T) {
	golden.Each(t, "../..", func(t *testing.T, name string, s policy.State) {
		r := policy.Compile(s)
		golden.Compare(t, "testdata/"+name+".rules", listed(lowerOnto(state{}, r), r.Problems))
	})
}

func listed(l *lowered, problems []ruleset.Problem) string {
	var b strings.Builder
	six := func(f conf.Family, words string) string {
		if f == conf.IPv6 {
			return words
		}
		return ""
	}
	for _, s := range l.sets {
		marks := ""
		if headerOf(s).Marks {
			marks = " skbinfo"
		}
		fmt.Fprintf(&b, "set %s %s%s%s\n", s.Name, headerOf(s).Type, six(s.Family, " family inet6"), marks)
		for e := range s.Entries.All() {
			to := entryOf(e, s.Name)
			if marks != "" {
				marks = fmt.Sprintf(" skbmark 0x%x/0x%x", to.Mark.Value, to.Mark.Mask)
			}
			fmt.Fprintf(&b, "  %s%s # %s\n", e.Element, marks, to.Comment)
		}
	}
	for _, c := range l.chains {
		fmt.Fprintf(&b, "%schain %s %s\n", six(c.family, "IPv6 "), c.table, c.name)
		for _, line := range c.lines {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	for _, j := range l.jumps {
		where := "last"
		if j.first {
			where = "first"
		}
		fmt.Fprintf(&b, "%s%s in %s %s\n  %s\n", six(j.family, "IPv6 "), where, j.table, j.chain, j.line)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

// TestLimits: lowering replaces entries that ipset doesn't support by entries with the same meaning. If the kernel
// refuses such an entry, the refusal names the ruleset's original entry.
func TestLimits(t *testing.T) {
	entry := func(p, words string) ruleset.Entry {
		return ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(p)}, Comment: words}
	}
	long := strings.Repeat("x", 300)
	for name, tc := range map[string]struct {
		kind       ruleset.SetKind
		have, want []ruleset.Entry
	}{
		"as they are": {
			ruleset.Networks,
			[]ruleset.Entry{entry("10.0.0.0/8", "a"), entry("10.0.0.0/9", "b")},
			[]ruleset.Entry{entry("10.0.0.0/8", "a"), entry("10.0.0.0/9", "b")},
		},
		"all addresses": {
			ruleset.Networks,
			[]ruleset.Entry{entry("0.0.0.0/0", "a"), entry("10.0.0.0/9", "b")},
			[]ruleset.Entry{entry("0.0.0.0/1", "a"), entry("10.0.0.0/9", "b"), entry("128.0.0.0/1", "a")},
		},
		"all addresses of IPv6": {
			ruleset.Networks,
			[]ruleset.Entry{entry("::/0", long)},
			[]ruleset.Entry{entry("::/1", conf.Comment(long)), entry("8000::/1", conf.Comment(long))},
		},
		"all addresses of a link": {
			ruleset.AddressLinks, []ruleset.Entry{entry("0.0.0.0/0", "a")}, []ruleset.Entry{entry("0.0.0.0/0", "a")},
		},
		"long comments": {
			ruleset.Addresses,
			[]ruleset.Entry{entry("10.0.0.1/32", "a"), entry("10.0.0.2/32", long), entry("10.0.0.3/32", `"`)},
			[]ruleset.Entry{entry("10.0.0.1/32", "a"), entry("10.0.0.2/32", conf.Comment(long)), entry("10.0.0.3/32", "?")},
		},
	} {
		set := ruleset.Set{Name: "weir-x", Kind: tc.kind, Entries: ruleset.EntriesOf(slices.Clone(tc.have)...)}
		l := lower(ruleset.Ruleset{Sets: []ruleset.Set{set}})
		if got := slices.Collect(l.sets[0].Entries.All()); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
		for e := range l.sets[0].Entries.All() {
			raised := l.raise(ruleset.Refused{{Set: "weir-x", Element: e.Element}: "why"})
			for r := range raised {
				in := func(e ruleset.Entry) bool { return e.Element == r.Element }
				if !slices.ContainsFunc(tc.have, in) {
					t.Errorf("%s: a refusal of %s is one of %s, which the ruleset hasn't", name, e.Element, r.Element)
				}
			}
		}
	}
}

// TestMultiport: a rule with more ports than iptables allows becomes several rules.
func TestMultiport(t *testing.T) {
	r := ruleset.Rule{Proto: ruleset.TCP, Action: ruleset.Return}
	for i := range uint16(8) {
		// One rule has room for 7 of these ranges.
		r.Ports = append(r.Ports, ruleset.PortRange{First: 10 * i, Last: 10*i + 5})
	}
	r.Ports = append(r.Ports, ruleset.PortRange{First: 99, Last: 99})
	want := []string{
		"-p tcp -m multiport --dports 0:5,10:15,20:25,30:35,40:45,50:55,60:65 -j RETURN",
		"-p tcp -m multiport --dports 70:75,99 -j RETURN",
	}
	if got := lowerRule(r, conf.IPv4); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMultiportHoldsAList: one rule can match policy.PortsPerList ports, or half as many ranges. Package policy
// assumes this when it counts rules.
func TestMultiportHoldsAList(t *testing.T) {
	ports, ranges := []ruleset.PortRange{}, []ruleset.PortRange{}
	for i := range uint16(policy.PortsPerList) {
		ports = append(ports, ruleset.PortRange{First: 10 * i, Last: 10 * i})
	}
	for i := range uint16(policy.PortsPerList / 2) {
		ranges = append(ranges, ruleset.PortRange{First: 10 * i, Last: 10*i + 5})
	}
	for _, list := range [][]ruleset.PortRange{ports, ranges} {
		r := ruleset.Rule{Proto: ruleset.TCP, Ports: list, Action: ruleset.Return}
		if got := lowerRule(r, conf.IPv4); len(got) != 1 {
			t.Errorf("a list of ports becomes %d rules: %q", len(got), got)
		}
	}
}

// TestLoweringRemembers: lowering reuses parts of earlier rulesets. The result is the same as without earlier rulesets.
func TestLoweringRemembers(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	comments := []string{"a", "b", `"`, strings.Repeat("x", 300)}
	networks := []string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "10.0.0.1/32"}
	var memory lowering
	var have state
	s := policytest.State(r)
	sets := map[string]ruleset.Set{}
	for i := range 2000 {
		for _, kind := range []ruleset.SetKind{ruleset.Networks, ruleset.Addresses} {
			set := sets[string(kind)]
			set.Name, set.Kind = "weir-"+string(kind), kind
			for range r.IntN(3) {
				e := ruleset.Entry{Comment: comments[r.IntN(len(comments))]}
				e.Prefix = netip.MustParsePrefix(networks[r.IntN(len(networks))])
				if set.Entries = set.Entries.Without(e.Element); r.IntN(3) > 0 {
					set.Entries = set.Entries.With(e)
				}
			}
			sets[string(kind)] = set
		}
		if i%20 == 0 {
			s = policytest.Change(r, s)
		}
		want := policy.Compile(s)
		for _, name := range slices.Sorted(maps.Keys(sets)) {
			if r.IntN(5) > 0 {
				want.Sets = append(want.Sets, sets[name])
			}
		}
		var n numbers
		for _, f := range conf.Families {
			if want.Has(f) && i%100 < 80 {
				n[f] = memory.numbers(&have, f, want)
			}
		}
		l := memory.lower(want, n)
		if got, want := listed(l, nil), listed(new(lowering).lower(want, n), nil); got != want {
			t.Fatalf("step %d: with memory:\n%s\nwithout:\n%s", i, got, want)
		}
		have = have.after(makePlan(have, l), l, nil)
	}
}

// TestSets: Sets returns the same sets that lowering makes, with and without numbers of classes.
func TestSets(t *testing.T) {
	check := func(name string, s policy.State, numbers bool) {
		r := policy.Compile(s)
		l, d := lower(r), &Driver{}
		if numbers {
			l = lowerOnto(state{}, r)
			for f := range conf.Families {
				d.byNumber[f].Store(true)
			}
		}
		var want, got []string
		for _, s := range l.sets {
			want = append(want, fmt.Sprint(s.Name, headerOf(s).Type, s.Entries.Len()))
		}
		for _, s := range d.Sets(r) {
			got = append(got, fmt.Sprint(s.Name, s.Type, s.Entries))
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -in the kernel +Sets\n%s", name, diff)
		}
	}
	for _, numbers := range []bool{false, true} {
		golden.Each(t, "../..", func(_ *testing.T, name string, s policy.State) { check(name, s, numbers) })
		for i := range uint64(200) {
			check(fmt.Sprint("state ", i), policytest.State(rand.New(rand.NewPCG(2, i))), numbers)
		}
	}
}
