package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRefusals: if the kernel refuses rules of policies, sets or entries, Apply's error names exactly these. It names
// entries only when no rule and no set is refused. Without the refused parts, Apply succeeds.
func TestRefusals(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, good := dualStack(t)
	before := listed(t)
	six := netip.MustParsePrefix("2001:db8::9/128") // an IPv6 address, which an IPv4 set can't contain
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

// TestRefusedRulesClose: if the kernel refuses a rule that belongs to no policy, the old rules in the kernel stay,
// provided that they check all packets. If they don't, all packets of pods are dropped.
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
		`oifname "weir0" counter drop`, "hook forward priority -150", "hook input priority -150",
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

// renamed makes the kernel refuse an expression, as a kernel without this expression would.
func renamed(t *testing.T, expression string) {
	t.Helper()
	named := append(binary.NativeEndian.AppendUint16(nil, uint16(4+len(expression)+1)), 1, 0) // NFTA_EXPR_NAME
	named = append(append(named, expression...), 0)
	nodetest.EditNetlink(t, true, func(message []byte) unix.Errno {
		if message[5] != unix.NFNL_SUBSYS_NFTABLES {
			return 0
		}
		for rest := message; ; {
			i := bytes.Index(rest, named)
			if i < 0 {
				return 0
			}
			rest = rest[i+4:]
			rest[0] = 'x'
		}
	})
}

// TestKernelWithoutLogs: if the kernel can't copy packets to a log group, policies are still enforced. A note says what
// is missing.
func TestKernelWithoutLogs(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	renamed(t, "log")
	testLacking(t, " log prefix", "modprobe nft_log nfnetlink_log")
}

// TestKernelWithoutPhysdev: if the kernel can't match bridge ports, policies are still enforced.
func TestKernelWithoutPhysdev(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	renamed(t, "match")
	testLacking(t, "xt match", "modprobe nft_compat xt_physdev")
}

func testLacking(t *testing.T, words, note string) {
	t.Helper()
	d := driver(t)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 10 {
		want := policy.Compile(policytest.DualStack())
		if i > 0 {
			want = policy.Compile(policytest.State(r))
		}
		result := mustApply(t, d, want, netfilter.Verify(i%3))
		if !slices.ContainsFunc(result.Notes, func(n netfilter.Note) bool {
			return n.About == "kernel" && strings.Contains(n.Message, note)
		}) {
			t.Errorf("no note with %q: %+v", note, result.Notes)
		}
		l := d.lowering.lower(want)
		for f, table := range l {
			if table == nil {
				continue
			}
			if text := table.String(); strings.Contains(text, words) {
				t.Errorf("the rules have %q", words)
			}
			if i == 0 && !d.have[f].stands(table) { // only later states may have audited policies, which need logs
				t.Errorf("the chains of %v don't count as complete", conf.Family(f))
			}
		}
		if got := listed(t); strings.Count(got, "drop") < 8 || strings.Contains(got, "kernel refuses") {
			t.Errorf("the pods are not checked:\n%s", got)
		}
	}
}

// TestNoRuleCountsAsRefusedAfterAFlush: if another program has flushed the ruleset, and the driver doesn't know it
// yet, Apply makes the table anew. It doesn't conclude that the kernel refuses the new rules.
func TestNoRuleCountsAsRefusedAfterAFlush(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, s := driver(t), policytest.DualStack()
	s.Policies = nil
	mustApply(t, d, policy.Compile(s), netfilter.All)
	nodetest.Run(t, "nft", "flush ruleset")
	for _, p := range s.Pods {
		port := intstr.FromInt32(8080)
		np := policytest.Letting("p", p.Labels, nil, networkingv1.NetworkPolicyPort{Port: &port})
		np.Namespace = p.Namespace
		s.Policies = append(s.Policies, np)
	}
	mustApply(t, d, policy.Compile(s), netfilter.Trust)
	if got := listed(t); !strings.Contains(got, "tcp dport 8080") {
		t.Errorf("a policy's rule is missing:\n%s", got)
	}
}

// TestRefusalsForOtherReasons: if the kernel refuses rules only because their table is gone, Apply makes the table
// anew, with rules that log packets. It doesn't conclude that the kernel can't log.
func TestRefusalsForOtherReasons(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, want := dualStack(t)
	nodetest.Run(t, "nft", "flush ruleset")
	want.Chains = append(slices.Clone(want.Chains), ruleset.Chain{Name: "WEIR-IN-X", Rules: []ruleset.Rule{
		{Action: ruleset.Log, To: conf.LogPrefix + "WEIR-IN-X"}, {Action: ruleset.Drop},
	}})
	r := mustApply(t, d, want, netfilter.Trust)
	got := listed(t)
	if len(r.Notes) > 0 || !strings.Contains(got, "log prefix") || strings.Contains(got, "weir-refused") {
		t.Errorf("%+v, with the rules\n%s", r, got)
	}
}
