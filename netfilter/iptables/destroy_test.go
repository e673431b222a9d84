package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

func walkthrough(t *testing.T, name string) (r ruleset.Ruleset) {
	t.Helper()
	golden.Each(t, "../..", func(_ *testing.T, story string, s policy.State) {
		if story == name {
			r = policy.Compile(s)
		}
	})
	return r
}

// TestSetsAreDestroyedLater: an Apply that changes rules leaves unneeded sets. An Apply that has nothing else to do
// destroys these sets.
func TestSetsAreDestroyedLater(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	with, without := walkthrough(t, "walkthrough-3-allow"), walkthrough(t, "walkthrough-1-none")
	sets := func() []string { return strings.Fields(nodetest.Run(t, "ipset", "list", "-name")) }
	mustApply(t, d, with, netfilter.Trust)
	needed := sets()
	r := mustApply(t, d, without, netfilter.Trust)
	if len(r.Left) == 0 || len(sets()) != len(needed) {
		t.Errorf("a change of rules destroyed sets: left %q, there are %q", r.Left, sets())
	}
	if r := mustApply(t, d, with, netfilter.Trust); len(r.Left) > 0 {
		t.Errorf("sets that are needed again are to be destroyed: %q", r.Left)
	}
	if r := mustApply(t, driver(t, NFT), with, netfilter.All); r.Changed {
		t.Error("sets that are needed again have not their entries")
	}
	mustApply(t, d, without, netfilter.Trust)
	soon(t, func() error {
		if r := mustApply(t, d, without, netfilter.Trust); len(r.Left) > 0 {
			return fmt.Errorf("left %q", r.Left)
		}
		return nil
	})
	if now := sets(); slices.ContainsFunc(now, func(s string) bool { return strings.HasPrefix(s, "weir-sel") }) {
		t.Errorf("a set that no rule uses is left: %q", now)
	}
}

// TestLeftSetsAreBounded: Apply never leaves more unneeded sets and entries than mostLeft allows.
func TestLeftSetsAreBounded(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	defer func(most struct{ sets, entries int }) { mostLeft = most }(mostLeft)
	base := walkthrough(t, "walkthrough-1-none")
	with := func(name string) ruleset.Ruleset {
		s := ruleset.Set{Name: name, Family: conf.IPv4, Kind: ruleset.Addresses, Role: ruleset.Peers, Opens: true}
		for i := range byte(4) {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, i})
			s.Entries = s.Entries.With(ruleset.Entry{Element: ruleset.Element{Prefix: netip.PrefixFrom(addr, 32)}})
		}
		r := base
		r.Sets = append(slices.Clone(base.Sets), s)
		slices.SortFunc(r.Sets, func(a, b ruleset.Set) int { return strings.Compare(a.Name, b.Name) })
		return r
	}
	d := driver(t, NFT)
	mustApply(t, d, with("weir-sel-0"), netfilter.Trust)
	for most, want := range map[struct{ sets, entries int }]int{{3, 100}: 3, {100, 11}: 2} {
		mostLeft = most
		for i := range 6 {
			name := fmt.Sprint("weir-sel-", want, i)
			r := mustApply(t, d, with(name), netfilter.Trust)
			if len(r.Left) > want || i > want && len(r.Left) < want {
				t.Errorf("%+v: after %d changes %q are left, want %d sets", most, i, r.Left, want)
			}
		}
	}
}

// TestForeignSetUnderAName: the driver replaces a set that another program has made under the name of one of weir's
// sets. If a rule uses the foreign set, the error says what a person must do.
func TestForeignSetUnderAName(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	want := walkthrough(t, "walkthrough-3-allow")
	nodetest.RunEach(t, "ipset create weir-in hash:net", "ipset add weir-in 10.0.0.0/8",
		"iptables-nft -A INPUT -m set --match-set weir-in src -j DROP")
	d := driver(t, NFT)
	_, err := d.Apply(t.Context(), want, netfilter.Trust)
	if err == nil || !strings.Contains(err.Error(), "delete the rule") {
		t.Errorf("while a rule uses it: %v", err)
	}
	nodetest.Run(t, "iptables-nft", "-F", "INPUT")
	soon(t, func() error {
		_, err := d.Apply(t.Context(), want, netfilter.Trust)
		return err
	})
	if out := nodetest.Run(t, "ipset", "list", conf.IngressMap); !strings.Contains(out, "skbmark 0x1") {
		t.Errorf("weir-in is:\n%s", out)
	}
}
