package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

func driver(t *testing.T) *Driver {
	t.Helper()
	d := New()
	t.Cleanup(d.Close)
	return d
}

func mustApply(t *testing.T, d *Driver, want ruleset.Ruleset, verify netfilter.Verify) netfilter.Result {
	t.Helper()
	r, err := d.Apply(t.Context(), want, verify)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// dualStack returns a driver that has applied the ruleset of policytest.DualStack, and this ruleset.
func dualStack(t *testing.T) (*Driver, ruleset.Ruleset) {
	t.Helper()
	d, r := driver(t), policy.Compile(policytest.DualStack())
	mustApply(t, d, r, netfilter.All)
	return d, r
}

// TestApply applies random rulesets one after the other. After each ruleset, a new driver must find nothing to change.
func TestApply(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	r := rand.New(rand.NewPCG(1, 1))
	random := func() policy.State {
		s := policytest.State(r)
		s.Policies = append(s.Policies, policytest.Letting("ports", nil, nil, policytest.OddPorts(100)...))
		return s
	}
	s := random()
	layouts := map[nftnl.Layout][len(conf.Families)]bool{}
	came, went, six := 0, 0, false // how often the ruleset got and lost IPv6, and whether it has IPv6 now
	for i := range 60 {
		want := policytest.Bounds(r).Merge(policy.Compile(s), nil)
		for f, table := range new(lowering).lower(want) {
			if table == nil {
				continue
			}
			for _, set := range table.sets {
				if set.entries.Len() > 0 {
					in := layouts[set.Layout]
					in[f] = true
					layouts[set.Layout] = in
				}
			}
		}
		switch now := want.Has(conf.IPv6); {
		case now && !six:
			came++
		case six && !now:
			went++
		}
		six = want.Has(conf.IPv6)
		mustApply(t, d, want, netfilter.Verify(i%3))
		if got := mustApply(t, driver(t), want, netfilter.All); got.Changed {
			t.Fatalf("round %d: applied again by another driver, the ruleset changed something", i)
		}
		if s = policytest.Change(r, s); i%5 == 4 {
			s = random() // a random state instead of a change of the last state
		}
	}
	for l := nftnl.Address; l <= nftnl.InnerPair; l++ {
		if layouts[l] != [len(conf.Families)]bool{true, true} {
			t.Errorf("the states don't need sets of layout %d in each family: %v", l, layouts[l])
		}
	}
	if came < 2 || went < 1 {
		t.Errorf("IPv6 has come %d times and gone %d times only", came, went)
	}
	nodetest.RunEach(t, "nft add table ip somebody",
		"nft add table ip weir-trial", "nft add table ip6 weir-trial") // an agent that is killed in a trial leaves these
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nodetest.Run(t, "nft", "list", "ruleset"); strings.Contains(left, "weir") ||
		!strings.Contains(left, "somebody") {
		t.Errorf("left after Remove:\n%s", left)
	}
}

// TestApplyEntries: if only entries of peers' sets have changed, applyEntries makes the change. After the kernel has
// refused an entry, applyEntries leaves the change to a whole Apply.
func TestApplyEntries(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, now := dualStack(t)
	peers := slices.DeleteFunc(slices.Clone(now.Sets), func(s ruleset.Set) bool {
		return s.Role != ruleset.Peers || s.Kind == ruleset.Ports || s.Entries.Len() == 0
	})
	if len(peers) == 0 {
		t.Fatal("no set of peers")
	}
	mustApply(t, d, now, netfilter.All)
	with := func(s ruleset.Set, entries ruleset.Entries) ruleset.Ruleset {
		next := now
		next.Sets = slices.Clone(now.Sets)
		next.Sets[slices.IndexFunc(now.Sets, func(o ruleset.Set) bool { return o.Name == s.Name })].Entries = entries
		return next
	}
	for _, s := range peers {
		for e := range s.Entries.All() {
			for _, next := range []ruleset.Ruleset{with(s, s.Entries.Without(e.Element)), with(s, s.Entries)} {
				result, done := d.applyEntries(next)
				if !done || !result.Changed || result.Rules {
					t.Fatalf("a change of %s: %+v, %v", s.Name, result, done)
				}
				if got := mustApply(t, driver(t), next, netfilter.All); got.Changed {
					t.Fatalf("a change of %s: a driver that reads everything changes something", s.Name)
				}
			}
		}
	}
	odd := ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix("2001:db8::1/128")}}
	four := slices.IndexFunc(peers, func(s ruleset.Set) bool {
		return s.Family == conf.IPv4 && s.Kind == ruleset.Addresses && s.Opens
	})
	_, err := d.Apply(t.Context(), with(peers[four], peers[four].Entries.With(odd)), netfilter.Trust)
	if refused := (*netfilter.RefusedError)(nil); !errors.As(err, &refused) || len(refused.Refused) != 1 {
		t.Errorf("an entry that the kernel refuses: %v", err)
	}
	if _, done := d.applyEntries(with(peers[0], ruleset.Entries{})); done {
		t.Error("after a refusal only entries were applied")
	}
	if got := mustApply(t, d, now, netfilter.Trust); got.Changed {
		t.Error("after a refusal the driver takes the refused entry for one of the kernel's")
	}
}

// TestDriftBeforeEntries: if a Refresh that hasn't ended finds missing rules, a change of entries also repairs these
// rules.
func TestDriftBeforeEntries(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, now := dualStack(t)
	mustApply(t, d, now, netfilter.All)
	nodetest.Run(t, "nft", "flush", "chain", "ip", "weir", conf.ForwardChain)
	if done, err := d.Refresh(t.Context(), func() bool { return true }); done || err != nil {
		t.Fatalf("a refresh that gives way: %v, %v", done, err)
	}
	next := now
	next.Sets = slices.Clone(now.Sets)
	i := slices.IndexFunc(next.Sets, func(s ruleset.Set) bool {
		return s.Role == ruleset.Peers && s.Kind == ruleset.Addresses && s.Entries.Len() > 0
	})
	next.Sets[i].Entries = ruleset.Entries{}
	if r := mustApply(t, d, next, netfilter.Trust); !r.Rules {
		t.Errorf("the rules are still missing: %+v", r)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, want := dualStack(t)
	golden := listed(t)
	for _, drift := range []string{
		"flush chain ip weir WEIR-FORWARD",
		"insert rule ip weir WEIR-INGRESS return",
		"add rule ip weir WEIR-EG-NONE accept",
		"flush chain ip weir WEIR-POSTROUTING",
		"flush chain ip weir WEIR-LABELS",
		"flush set ip weir weir-pods",
		"flush set ip weir weir-self",
		"flush map ip weir weir-in",
		"flush set ip weir weir-networks",
		"add element ip weir weir-networks { 192.0.2.0-192.0.2.2 }",
		"add element ip weir weir-networks { 192.0.2.64/26 }",
		"delete element ip weir weir-networks { 10.88.0.0/24 }",
		"add element ip weir weir-eg { 203.0.113.9 : return }",
		"add element ip weir weir-eg { 203.0.113.9 : accept }",
		"add element ip weir weir-eg { 203.0.113.9 : jump WEIR-IN-NONE }",
		"add table ip weir { flags dormant; }",
		"flush ruleset",
		"flush table ip weir",
		"delete table ip6 weir",
		"add chain ip weir WEIR-STALE",
		"add chain ip weir WEIR-STALE { type filter hook forward priority -200; policy drop; }",
		"add set ip weir weir-stale { type ipv4_addr; }",
		"add set ip weir weir-stale { type mark; }",
		"add chain ip weir WEIR-FORWARD { policy drop; }",
		"flush chain ip6 weir WEIR-FORWARD",
		"flush set ip6 weir weir-pods6",
		"flush map ip6 weir weir-in6",
		"flush set ip6 weir weir-networks6",
		"delete table ip weir; add table ip weir; " +
			"add chain ip weir WEIR-FORWARD { type filter hook prerouting priority 0; }",
		"delete table ip weir; add table ip weir; add set ip weir weir-pods { type mark; }",
		"delete table ip weir; add table ip weir; add chain ip weir WEIR-FORWARD",
	} {
		nodetest.Run(t, "nft", drift)
		if r := mustApply(t, d, want, netfilter.All); !r.Changed {
			t.Errorf("after %q nothing was changed", drift)
		}
		if got := listed(t); sorted(got) != sorted(golden) {
			t.Errorf("after %q:\n%s\nwant\n%s", drift, got, golden)
		}
		if r := mustApply(t, driver(t), want, netfilter.All); r.Changed {
			t.Errorf("after %q was repaired, another driver changed something", drift)
		}
	}
}

// TestPluginBeside: if the plugin adds and deletes pods' addresses between changes of the driver, Apply succeeds, and
// doesn't undo the plugin's changes.
func TestPluginBeside(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	s := policytest.DualStack()
	mustApply(t, d, policy.Compile(s), netfilter.All)
	gone := s.Endpoints[0]
	var addrs []netip.Addr
	for _, a := range gone.Addresses {
		addrs = append(addrs, a.Addr)
	}
	stranger := netip.MustParseAddr("203.0.113.9")
	for name, layout := range map[string]nftnl.Layout{"weir-pods": nftnl.Address, "weir-in": nftnl.Verdicts} {
		for f := range conf.Families {
			set := nftnl.Set{Name: conf.Family(f).Set(name), Layout: layout}
			for _, a := range addrs {
				if conf.FamilyOf(a) == conf.Family(f) {
					var b nftnl.Batch
					b.DeleteElements(tables[f], set, []nftnl.Element{{Prefix: netip.PrefixFrom(a, a.BitLen())}})
					if err := b.Commit(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	nodetest.Run(t, "nft", "add element ip weir weir-pods { 203.0.113.9 }")
	less := s
	less.Endpoints = s.Endpoints[1:]
	if r := mustApply(t, d, policy.Compile(less), netfilter.Trust); len(r.Strays) > 0 {
		t.Errorf("strays, although nothing was read: %v", r.Strays)
	}
	r := mustApply(t, driver(t), policy.Compile(less), netfilter.All)
	if r.Changed || !slices.Contains(r.Strays, stranger) {
		t.Errorf("another driver changed something, or sees no stray: %+v", r)
	}
	if !strings.Contains(listed(t), "203.0.113.9") {
		t.Error("the address of an unknown pod was removed from the set of all pods")
	}
	if !d.Reread(stranger) || d.Reread(stranger) {
		t.Error("Reread doesn't tell once of an address that the plugin has added")
	}
	nodetest.Run(t, "nft", "delete element ip weir weir-pods { 203.0.113.9 }")
	if !d.Reread(stranger) || d.Reread(stranger) {
		t.Error("Reread doesn't tell once that the plugin has changed the set of all pods")
	}
	nodetest.Run(t, "nft", "add element ip weir weir-pods { 203.0.113.9 }")
	if !d.Reread(stranger) {
		t.Error("Reread doesn't tell of an address that the plugin has added")
	}
}

// TestAuditedClassesStand: KeepClosed accepts chains with rules of audited policies as complete. Such a chain has a
// rule that logs the packets which these policies would drop. If this rule is missing, the chain counts as incomplete.
func TestAuditedClassesStand(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	golden.Each(t, "../..", func(t *testing.T, name string, s policy.State) {
		if name != "audit" {
			return
		}
		want, closed := policy.Compile(s), policy.Compile(policy.State{})
		audited := want.Classes[slices.IndexFunc(want.Classes, func(c ruleset.Class) bool { return len(c.Audited) > 0 })]
		mustApply(t, driver(t), want, netfilter.All)
		if fell, err := driver(t).KeepClosed(t.Context(), closed); err != nil || len(fell) > 0 {
			t.Errorf("closed in %v, %v", fell, err)
		}
		nodetest.Run(t, "nft", "flush chain ip weir "+audited.Chain)
		nodetest.Run(t, "nft", "add rule ip weir "+audited.Chain+" return")
		if fell, err := driver(t).KeepClosed(t.Context(), closed); err != nil || len(fell) == 0 {
			t.Errorf("after the rule that logs is gone: closed in %v, %v", fell, err)
		}
	})
}

// TestKeepClosed: KeepClosed doesn't change a family's chains if they are complete, even if another version of weir has
// made them. To a family whose chains are not complete, it applies the ruleset without classes. It also keeps the
// chains of a family that this ruleset lacks: endpoint records may have been lost.
func TestKeepClosed(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := policytest.DualStack()
	full, closed := policy.Compile(s), policy.Compile(policy.State{Endpoints: s.Endpoints})
	mustApply(t, driver(t), closed, netfilter.All)
	shut := listings(t)
	d := driver(t)
	mustApply(t, d, full, netfilter.All)
	whole := listings(t)
	if whole[conf.IPv4] == shut[conf.IPv4] || whole[conf.IPv6] == shut[conf.IPv6] {
		t.Fatal("the state has nobody in a class")
	}
	keep := func(closed ruleset.Ruleset, after string, falls ...conf.Family) {
		t.Helper()
		nodetest.Run(t, "nft", cmp.Or(after, "list tables"))
		before, d := listings(t), driver(t)
		fell, err := d.KeepClosed(t.Context(), closed)
		if err != nil || !slices.Equal(fell, falls) {
			t.Errorf("after %q: closed in %v, want %v; %v", after, fell, falls, err)
		}
		for f, now := range listings(t) {
			if slices.Contains(falls, conf.Family(f)) {
				before[f] = shut[f]
			}
			if now != before[f] {
				t.Errorf("after %q, %s:\n%s\nwant\n%s", after, conf.Family(f), now, before[f])
			}
		}
		mustApply(t, d, full, netfilter.Trust)
		if listings(t) != whole {
			t.Errorf("after %q, the driver doesn't restore the rules:\n%s", after, listed(t))
		}
	}
	keep(closed, "")
	keep(closed, `insert rule ip weir WEIR-INPUT ip saddr 192.0.2.1 return`)
	keep(closed, "flush ruleset", conf.IPv4, conf.IPv6)
	class := ""
	for e := range d.have[conf.IPv4].sets[conf.IngressMap].entries.All() {
		class = cmp.Or(class, target(e.Comment))
	}
	for _, drift := range []string{
		"flush chain TABLE WEIR-FORWARD", "flush chain TABLE WEIR-INGRESS", "add rule TABLE WEIR-EGRESS return",
		"add table TABLE { flags dormant; }", "delete table TABLE",
	} {
		for f, table := range []string{"ip weir", "ip6 weir"} {
			keep(closed, strings.ReplaceAll(drift, "TABLE", table), conf.Family(f))
		}
	}
	keep(closed, "flush chain ip weir "+class, conf.IPv4)
	only4 := policy.Compile(policy.State{})
	if only4.Has(conf.IPv6) {
		t.Fatal("a ruleset without IPv6 pods has chains for IPv6")
	}
	if _, err := driver(t).KeepClosed(t.Context(), only4); err != nil || listings(t) != whole {
		t.Errorf("without records: %v:\n%s", err, listed(t))
	}
	nodetest.Run(t, "nft", "flush chain ip weir WEIR-INGRESS")
	if _, err := driver(t).KeepClosed(t.Context(), only4); err != nil || listings(t)[conf.IPv6] != whole[conf.IPv6] {
		t.Errorf("without records: %v:\n%s", err, listed(t))
	}
}

// TestClosingWithoutSets: if the kernel refuses the set of all pods, the rules that close all pods still drop packets
// of pods behind other plugins.
func TestClosingWithoutSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := policytest.DualStack()
	for i := range s.Endpoints {
		s.Endpoints[i].Chained, s.Endpoints[i].HostIf = true, fmt.Sprint("veth", i)
	}
	want := new(lowering).lower(policy.Compile(s))
	for _, f := range conf.Families {
		if err := closing(f, newKernelTable(), want[f], false).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	rules := listed(t)
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			for _, by := range []string{"saddr", "daddr"} {
				if condition := by + " " + a.Addr.String() + " "; !strings.Contains(rules, condition) {
					t.Errorf("no rule has %q:\n%s", condition, rules)
				}
			}
		}
	}
}

// TestKnows: the driver can tell its own changes of rules from other programs' changes.
func TestKnows(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	type generation struct {
		number    uint32
		concerned bool
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan generation, 1000), make(chan error, 1)
	d := driver(t)
	go func() { done <- d.Watch(ctx, func(g uint32, concerned bool) { heard <- generation{g, concerned} }) }()
	<-heard
	until := func() (knows, concerned bool) {
		t.Helper()
		last, err := d.Generation()
		if err != nil {
			t.Fatal(err)
		}
		knows = true
		for {
			g := <-heard
			if g.concerned {
				knows, concerned = d.Knows(g.number) && knows, true
			}
			if g.number == last {
				return knows, concerned
			}
		}
	}
	s := policytest.DualStack()
	mustApply(t, d, policy.Compile(s), netfilter.All)
	if knows, concerned := until(); !knows || !concerned {
		t.Errorf("of its own first change: knows %v, concerned %v", knows, concerned)
	}
	nodetest.Run(t, "nft", "add table ip somebody { chain x { type filter hook input priority 0; }; }")
	if _, concerned := until(); concerned {
		t.Error("concerned by another program's table")
	}
	nodetest.Run(t, "nft", "add element ip weir weir-pods { 203.0.113.9 }")
	if _, concerned := until(); concerned {
		t.Error("concerned by an element")
	}
	nodetest.Run(t, "nft", "flush chain ip weir WEIR-EGRESS")
	if knows, concerned := until(); knows || !concerned {
		t.Errorf("of a stranger's change: knows %v, concerned %v", knows, concerned)
	}
	mustApply(t, d, policy.Compile(s), netfilter.All)
	if knows, concerned := until(); !knows || !concerned {
		t.Errorf("of its repair: knows %v, concerned %v", knows, concerned)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
