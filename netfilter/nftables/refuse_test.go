package nftables

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRefusals: if the kernel refuses a policy's rule, a set or entries, Apply names exactly these. Without
// them it applies the rest.
func TestRefusals(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	good := policy.Compile(policytest.DualStack())
	mustApply(t, d, good, netfilter.All)
	before := listed(t)
	six := netip.MustParsePrefix("2001:db8::9/128") // no address of an IPv4 set
	host := netip.MustParsePrefix("203.0.113.9/32")
	bad := func(name string, entries ...netip.Prefix) ruleset.Set {
		s := ruleset.Set{Name: name, Kind: ruleset.Addresses, Role: ruleset.Peers, Opens: true}
		for _, p := range entries {
			s.Entries = s.Entries.With(ruleset.Entry{Element: ruleset.Element{Prefix: p}, Comment: "x/y"})
		}
		return s
	}
	long := bad("weir-sel-" + strings.Repeat("X", 300))
	rules := []ruleset.Rule{
		{Sets: []ruleset.SetMatch{{Name: "weir-sel-MISSING", By: ruleset.Source}}, Action: ruleset.Return},
		{Proto: ruleset.TCP, Action: ruleset.Return},
		{Sets: []ruleset.SetMatch{{Name: long.Name, By: ruleset.Source}}, Action: ruleset.Return},
	}
	for i := range rules {
		rules[i].Policies = []string{"x/y"}
	}
	want := good
	want.Sets = append(slices.Clone(good.Sets), bad("weir-sel-A", host, six), long)
	want.Chains = append(slices.Clone(good.Chains), ruleset.Chain{
		Name: "WEIR-IN-X", Rules: append(rules, ruleset.Rule{Action: ruleset.Drop}),
	})
	_, err := d.Apply(t.Context(), want, netfilter.Trust)
	var refused *netfilter.RefusedError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	first := slices.Collect(maps.Keys(refused.Refused))
	expected := map[ruleset.Refusal]bool{
		{Set: long.Name}: true, {Rule: rules[0].Key()}: true,
	}
	if len(first) != len(expected) || slices.ContainsFunc(first, func(r ruleset.Refusal) bool { return !expected[r] }) {
		t.Errorf("refused: %v", refused.Refused)
	}
	if got := listed(t); got != before {
		t.Errorf("a refused change changed\n%s\nto\n%s", before, got)
	}
	want.Sets = append(slices.Clone(good.Sets), bad("weir-sel-A", host, six))
	want.Chains[len(want.Chains)-1].Rules = []ruleset.Rule{rules[1], {Action: ruleset.Drop}}
	_, err = d.Apply(t.Context(), want, netfilter.Trust)
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	element := ruleset.Refusal{Set: "weir-sel-A", Element: ruleset.Element{Prefix: six}}
	if why := refused.Refused[element]; len(refused.Refused) != 1 || !strings.Contains(why, "2001:db8::9 in the set") {
		t.Errorf("refused: %v", refused.Refused)
	}
	want.Sets[len(want.Sets)-1] = bad("weir-sel-A", host)
	mustApply(t, d, want, netfilter.Trust)
	if r := mustApply(t, driver(t), want, netfilter.All); r.Changed {
		t.Error("another driver changed something")
	}
}

// TestAMapsRefusedElementIsItsClass: a refused element of a map counts as a refused entry of the pod's class set.
func TestAMapsRefusedElementIsItsClass(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	want := policy.Compile(policytest.DualStack())
	six := ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix("2001:db8::9/128")}, Comment: "x/y"}
	class := ""
	want.Sets = slices.Clone(want.Sets)
	for i, s := range want.Sets {
		if s.Role == ruleset.Members && s.Family == conf.IPv4 && s.Dispatch == conf.IngressChain {
			class, want.Sets[i].Entries = s.Name, s.Entries.With(six)
			break
		}
	}
	_, err := d.Apply(t.Context(), want, netfilter.Trust)
	var refused *netfilter.RefusedError
	if !errors.As(err, &refused) || refused.Refused[ruleset.Refusal{Set: class, Element: six.Element}] == "" ||
		len(refused.Refused) != 1 {
		t.Errorf("%v", err)
	}
}

// TestRefusedRulesClose: if the kernel refuses a rule of no policy, its present rules stay. If they don't check
// all packets, all packets of pods are dropped.
func TestRefusedRulesClose(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	good := policy.Compile(policytest.DualStack())
	bad := good
	bad.Chains = slices.Clone(good.Chains)
	i := slices.IndexFunc(bad.Chains, func(c ruleset.Chain) bool { return c.Name == conf.BridgeChain })
	bad.Chains[i].Rules = append(slices.Clone(bad.Chains[i].Rules), ruleset.Rule{
		Sets: []ruleset.SetMatch{{Name: "weir-missing", By: ruleset.Source}}, Action: ruleset.Drop,
	})
	if _, err := d.Apply(t.Context(), bad, netfilter.All); err == nil {
		t.Fatal("no error")
	}
	got := listed(t)
	for _, drop := range []string{
		"ip saddr @weir-pods counter drop", "ip6 daddr @weir-pods6 counter drop", `iifname "weir0" counter drop`,
		`oifname "weir0" counter drop`, "hook forward priority mangle", "hook input priority mangle",
	} {
		if !strings.Contains(got, drop) {
			t.Errorf("no %q in\n%s", drop, got)
		}
	}
	mustApply(t, d, good, netfilter.Trust)
	stands := listed(t)
	if _, err := d.Apply(t.Context(), bad, netfilter.All); err == nil {
		t.Fatal("no error")
	}
	if got := listed(t); got != stands {
		t.Errorf("complete rules were changed to\n%s", got)
	}
	mustApply(t, d, good, netfilter.Trust)
}
