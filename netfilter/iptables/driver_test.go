package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

func driver(t *testing.T, f Flavour) *Driver {
	t.Helper()
	d, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	d.Flavour = f
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

// soon calls the function try until it returns nil, for a minute at most. Tests need this because nf_tables frees
// deleted rules only some time later. Until then, the sets of these rules count as in use.
func soon(t *testing.T, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// mustRemove repeats Remove until it succeeds, because the sets of deleted rules count as in use for a while.
func mustRemove(t *testing.T, d *Driver) {
	t.Helper()
	soon(t, func() error { return d.Remove(t.Context()) })
}

func TestApplyLegacy(t *testing.T) { testApply(t, Legacy) }
func TestApplyNFT(t *testing.T)    { testApply(t, NFT) }

// testApply applies random rulesets one after the other. After each ruleset, a new driver must find nothing to change.
func testApply(t *testing.T, f Flavour) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, f)
	r := rand.New(rand.NewPCG(1, 1))
	random := func() policy.State {
		s := policytest.State(r)
		s.Policies = append(s.Policies, policytest.Letting("ports", nil, nil, policytest.OddPorts(100)...))
		return s
	}
	s := random()
	type kind struct {
		t ruleset.SetKind
		f conf.Family
	}
	kinds := map[kind]bool{}
	came, went, six := 0, 0, false // how often the ruleset got and lost IPv6, and whether it has IPv6 now
	for i := range 25 {
		want := policy.Compile(s)
		for _, set := range want.Sets {
			if set.Entries.Len() > 0 {
				kinds[kind{set.Kind, set.Family}] = true
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
		if got := mustApply(t, driver(t, f), want, netfilter.All); got.Changed {
			t.Fatalf("round %d: applied again by another driver, the ruleset changed something", i)
		}
		if s = policytest.Change(r, s); i%5 == 4 {
			s = random() // a random state instead of a change of the last state
		}
	}
	if len(kinds) != 9 { // four kinds of sets for each family, and sets of port numbers, which have no family
		t.Errorf("the states don't need every type of set in each family: %v", kinds)
	}
	if came < 2 || went < 1 {
		t.Errorf("IPv6 has come %d times and gone %d times only", came, went)
	}
	nodetest.Run(t, "iptables-"+string(f), "-t", "mangle", "-N", "SOMEBODY")
	nodetest.Run(t, "ip6tables-"+string(f), "-t", "mangle", "-N", "SOMEBODY6")
	nodetest.Run(t, "ipset", "create", "somebody", "hash:ip")
	mustRemove(t, d)
	save := nodetest.Run(t, "iptables-"+string(f)+"-save") + nodetest.Run(t, "ip6tables-"+string(f)+"-save")
	sets := nodetest.Run(t, "ipset", "list", "-name")
	if strings.Contains(save, "WEIR") || strings.Contains(sets, "weir") {
		t.Errorf("left after Remove:\n%s%s", save, sets)
	}
	if !strings.Contains(save, "SOMEBODY ") || !strings.Contains(save, "SOMEBODY6") ||
		!strings.Contains(sets, "somebody") {
		t.Errorf("Remove took what isn't weir's:\n%s%s", save, sets)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	want := policy.Compile(policytest.DualStack())
	mustApply(t, d, want, netfilter.All)
	golden := listing(t)
	for _, drift := range []string{
		"iptables -t mangle -F WEIR-FORWARD",
		"iptables -t mangle -D FORWARD 1",
		"iptables -t mangle -I FORWARD 1 -j ACCEPT",
		"iptables -t mangle -F",
		"iptables -t nat -F WEIR-POSTROUTING",
		"iptables -t mangle -I WEIR-INGRESS 1 -j RETURN",
		"ipset flush weir-pods",
		"ipset add weir-in 203.0.113.9 skbmark 0x10010000/0x1fff0000",
		"ipset add weir-eg 203.0.113.9",
		"iptables -t mangle -F WEIR-EGRESS-LAST",
		"iptables -t mangle -I WEIR-INGRESS 4 -m mark --mark 0x10ab0000/0x1fff0000 -j RETURN",
		"ipset del weir-networks 10.88.0.0/24",
		"nft flush ruleset",
		"iptables -t mangle -N WEIR-STALE",
		"ipset create weir-stale hash:ip",
		"ip6tables -t mangle -F WEIR-FORWARD",
		"ip6tables -t mangle -D INPUT 1",
		"ip6tables -t nat -F",
		"ip6tables -t mangle -N WEIR-STALE",
		"ipset flush weir-pods6",
		"ipset add weir-eg6 2001:db8::9 skbmark 0x30000/0x1fff0000",
		"ipset flush weir-in6",
		"nft delete table ip6 mangle",
	} {
		f := strings.Fields(drift)
		nodetest.Run(t, f[0], f[1:]...)
		mustApply(t, d, want, netfilter.All)
		if drift == "iptables -t mangle -I FORWARD 1 -j ACCEPT" {
			// weir doesn't remove rules of other programs, so the test must remove this rule.
			nodetest.Run(t, "iptables", "-t", "mangle", "-D", "FORWARD", "-j", "ACCEPT")
		}
		if got := listing(t); got != golden {
			t.Errorf("after %q:\n%s\nwant\n%s", drift, got, golden)
		}
	}
}

func listing(t *testing.T) string {
	all := listings(t)
	return all[conf.IPv4] + all[conf.IPv6]
}

func listings(t *testing.T) (all [len(conf.Families)]string) {
	for f, program := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(nodetest.Run(t, program)) {
			if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":WEIR") {
				all[f] += strings.Split(line, " [")[0]
			}
		}
	}
	sets, err := exec.Command("sh", "-c", "ipset save | sort -r | sed 's/ initval [^ ]*//; s/ hashsize [^ ]*//'").Output()
	if err != nil {
		t.Fatal(err)
	}
	inet6 := map[string]bool{} // "sort -r" puts the lines "create" before the lines "add"
	for line := range strings.Lines(string(sets)) {
		name := strings.Fields(line)[1]
		inet6[name] = inet6[name] || strings.Contains(line, " family inet6 ")
		f := conf.IPv4
		if inet6[name] {
			f = conf.IPv6
		}
		all[f] += line
	}
	return all
}

func TestFlavour(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	want := func(f Flavour) {
		t.Helper()
		if got, err := detectFlavour(t.Context()); got != f || err != nil {
			t.Errorf("detected %q, %v; want %q", got, err, f)
		}
	}
	want(NFT) // no program has made rules yet
	mustApply(t, driver(t, Legacy), policy.Compile(policy.State{}), netfilter.All)
	want(NFT) // weir's own rules don't count
	d := driver(t, NFT)
	mustApply(t, d, policy.Compile(policy.State{}), netfilter.All)
	if err := d.CleanOtherFlavour(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := nodetest.Run(t, "iptables-legacy-save"); strings.Contains(out, "WEIR") {
		t.Errorf("left in the other flavour:\n%s", out)
	}
	nodetest.Run(t, "iptables-legacy", "-A", "FORWARD", "-s", "203.0.113.1", "-j", "DROP")
	want(Legacy)
	nodetest.Run(t, "iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	want(NFT)
	// Without iptables, the error must name iptables.
	if err := os.Setenv("PATH", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := detectFlavour(t.Context()); err == nil || !strings.Contains(err.Error(), "iptables") {
		t.Errorf("without iptables: %v", err)
	}
}

// TestKnows: the driver can tell its own changes of nf_tables from other programs' changes.
func TestKnows(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	ctx, cancel := context.WithCancel(t.Context())
	generations, done := make(chan uint32, 100), make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func(g uint32, concerned bool) {
			if concerned {
				generations <- g
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-generations: // the present generation: from now on, the watch misses no change
	case <-time.After(time.Minute):
		t.Fatal("the watch doesn't begin")
	}
	// told makes another program add and delete a rule, and waits until Watch has reported these two changes. It
	// returns the generations of the earlier changes that Watch has reported since the last call.
	told := func() (all []uint32) {
		t.Helper()
		nodetest.Run(t, "iptables-nft", "-t", "mangle", "-A", "FORWARD", "-j", "ACCEPT")
		nodetest.Run(t, "iptables-nft", "-t", "mangle", "-D", "FORWARD", "-j", "ACCEPT")
		last, err := d.Generation()
		if err != nil {
			t.Fatal(err)
		}
		timeout := time.After(time.Minute)
		for {
			select {
			case g := <-generations:
				if g < last-1 {
					all = append(all, g)
				}
				if g == last {
					return all
				}
			case <-timeout:
				t.Fatal("the watch doesn't tell of a change")
			}
		}
	}
	r := rand.New(rand.NewPCG(3, 3))
	s := policytest.State(r)
	own := 0
	for range 5 {
		mustApply(t, d, policy.Compile(s), netfilter.Trust)
		for _, g := range told() {
			own++
			if !d.Knows(g) {
				t.Errorf("generation %d is the driver's own, and it doesn't know it", g)
			}
		}
		s = policytest.Change(r, s)
	}
	if own < 3 {
		t.Errorf("the driver has made %d changes only", own)
	}
	want := policy.Compile(s)
	mustApply(t, d, want, netfilter.Trust)
	nodetest.Run(t, "iptables-nft", "-t", "mangle", "-F", "WEIR-FORWARD")
	flushed, err := d.Generation()
	if err != nil {
		t.Fatal(err)
	}
	if d.Knows(flushed) || d.Knows(0) {
		t.Errorf("it knows a stranger's change: %v, or one that nothing is known of: %v", d.Knows(flushed), d.Knows(0))
	}
	mustApply(t, d, want, netfilter.All)
	if !d.Knows(flushed) {
		t.Error("it doesn't know a change that it has read")
	}

	// This script replaces iptables-nft-restore. Before the driver hears that its change is done, the script also makes
	// another program's change.
	dir := t.TempDir()
	script := "#!/bin/sh\nPATH=${PATH#*:}\niptables-nft-restore \"$@\" && iptables-nft -t mangle -F WEIR-INPUT\n"
	if err := os.WriteFile(dir+"/iptables-nft-restore", []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	d.ahead[conf.IPv4].dismiss() // ends the process that was started in advance, before the script existed
	before, err := d.Generation()
	if err != nil {
		t.Fatal(err)
	}
	other := policy.Compile(policy.State{})
	i := slices.IndexFunc(other.Chains, func(c ruleset.Chain) bool { return c.Name == "WEIR-INPUT" })
	other.Chains[i].Rules = append(other.Chains[i].Rules,
		ruleset.Rule{In: "lo", Comment: "weir: one rule more", Action: ruleset.Return})
	mustApply(t, d, other, netfilter.Trust)
	last, err := d.Generation()
	if err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for g := before + 1; g <= last; g++ {
		if !d.Knows(g) {
			unknown++
		}
	}
	if unknown != 1 {
		t.Errorf("of the generations %d to %d, one of which a stranger made, %d are unknown", before+1, last, unknown)
	}
}

// TestKeepClosed: if a family's chains are complete, KeepClosed doesn't change them. If a part of a family's chains is
// missing, KeepClosed applies the ruleset without classes to this family.
func TestKeepClosed(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := policytest.DualStack()
	want, closed := policy.Compile(s), policy.Compile(policy.State{Endpoints: s.Endpoints})
	class := want.Classes[slices.IndexFunc(want.Classes, func(c ruleset.Class) bool { return c.Chain != "" })]
	class6 := want.Classes[slices.IndexFunc(want.Classes, func(c ruleset.Class) bool {
		return c.Chain != "" && strings.HasSuffix(c.Set, "6") && len(c.Set) == len("weir-in-")+17
	})]
	mustApply(t, driver(t, NFT), want, netfilter.All)
	whole := listings(t)
	mustApply(t, driver(t, NFT), closed, netfilter.All)
	shut := listings(t)
	if whole[conf.IPv4] == shut[conf.IPv4] || whole[conf.IPv6] == shut[conf.IPv6] {
		t.Fatal("the state has nobody in a class")
	}
	v4, v6 := []conf.Family{conf.IPv4}, []conf.Family{conf.IPv6}
	for drift, falls := range map[string][]conf.Family{ // falls has the families to which KeepClosed applies closed
		"true": nil,
		"iptables -t mangle -I FORWARD 1 -j ACCEPT": nil, // weir's rule is no longer first
		"iptables -t mangle -F FORWARD":             nil,
		// A chain with other rules than the wanted ones is complete: an older version of weir may have made the rules.
		"iptables -t mangle -I " + class.Chain + " -j RETURN": nil,
		"iptables -t mangle -F":                               v4,
		"iptables -t mangle -F WEIR-FORWARD":                  v4,
		"iptables -t mangle -F WEIR-INPUT":                    v4,
		"iptables -t mangle -F WEIR-ERRORS":                   v4,
		"iptables -t mangle -F WEIR-INGRESS":                  v4,
		"iptables -t mangle -F " + class.Chain:                v4,
		"nft flush ruleset":                                   conf.Families[:],
		"ip6tables -t mangle -I FORWARD 1 -j ACCEPT":          nil,
		"ip6tables -t mangle -F INPUT":                        nil,
		"ip6tables -t mangle -F":                              v6,
		"ip6tables -t mangle -F WEIR-EGRESS":                  v6,
		"ip6tables -t mangle -F " + class6.Chain:              v6,
	} {
		mustApply(t, driver(t, NFT), want, netfilter.All)
		f := strings.Fields(drift)
		nodetest.Run(t, f[0], f[1:]...)
		d := driver(t, NFT)
		if fell, err := d.KeepClosed(t.Context(), closed); err != nil || !slices.Equal(fell, falls) {
			t.Errorf("after %q: closed in %v, %v; want %v", drift, fell, err, falls)
		}
		for _, program := range []string{"iptables", "ip6tables"} {
			f := nodetest.Run(t, program, "-t", "mangle", "-S", "FORWARD")
			if !strings.Contains(strings.Split(f, "\n")[1], "-j WEIR-FORWARD") {
				t.Errorf("after %q weir's rules aren't first:\n%s", drift, f)
			}
			for _, undo := range []string{"FORWARD -j ACCEPT", class.Chain + " -j RETURN"} {
				// An error means that the rule doesn't exist.
				_ = exec.Command(program, append([]string{"-t", "mangle", "-D"}, strings.Fields(undo)...)...).Run()
			}
		}
		got := listings(t)
		for _, f := range conf.Families {
			if should := map[bool]string{true: shut[f], false: whole[f]}[slices.Contains(falls, f)]; got[f] != should {
				t.Errorf("after %q, %s:\n%s\nwant\n%s", drift, f, got[f], should)
			}
		}
		mustApply(t, d, want, netfilter.Trust)
		if listings(t) != whole {
			t.Errorf("after %q, the driver doesn't restore the rules:\n%s", drift, listing(t))
		}
	}
}

// TestKeepClosedAfterAnUpgrade: KeepClosed keeps the rules of an older version that has fewer chains.
func TestKeepClosedAfterAnUpgrade(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := policytest.DualStack()
	mustApply(t, driver(t, NFT), policy.Compile(s), netfilter.All)
	for _, program := range []string{"iptables", "ip6tables"} {
		script := fmt.Sprintf("%[1]s-save -t mangle | grep -v WEIR-ERRORS | %[1]s-restore -T mangle", program)
		nodetest.Run(t, "sh", "-c", script)
	}
	before := listing(t)
	if strings.Contains(before, "WEIR-ERRORS") || !strings.Contains(before, "WEIR-INGRESS") {
		t.Fatalf("not the rules of an earlier version:\n%s", before)
	}
	fell, err := driver(t, NFT).KeepClosed(t.Context(), policy.Compile(policy.State{Endpoints: s.Endpoints}))
	if err != nil || len(fell) > 0 || listing(t) != before {
		t.Errorf("closed in %v, %v:\n%s", fell, err, listing(t))
	}
}

// TestWithoutIP6tables: on a node without IPv6 pods, the driver never runs ip6tables. If ip6tables fails on a node with
// IPv6 pods, the error names ip6tables.
func TestWithoutIP6tables(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir := t.TempDir()
	for _, program := range []string{
		"ip6tables-nft-save", "ip6tables-nft-restore", "ip6tables-legacy-save",
		"ip6tables-legacy-restore",
	} {
		script := "#!/bin/sh\necho $0 $* >>" + dir + "/asked\necho \"can't initialize ip6tables\" >&2\nexit 3\n"
		if err := os.WriteFile(dir+"/"+program, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	d := driver(t, NFT)
	dual := policytest.DualStack()
	four := dual
	four.Endpoints, four.Nodes = nil, nil
	for _, e := range dual.Endpoints {
		if e.Addresses = slices.DeleteFunc(slices.Clone(e.Addresses),
			func(a policy.Address) bool { return a.Addr.Is6() }); len(e.Addresses) > 0 {
			four.Endpoints = append(four.Endpoints, e)
		}
	}
	for i := range 4 {
		mustApply(t, d, policy.Compile(four), netfilter.Verify(i%3))
	}
	if _, err := d.KeepClosed(t.Context(), policy.Compile(policy.State{Endpoints: four.Endpoints})); err != nil {
		t.Error(err)
	}
	if asked, err := os.ReadFile(dir + "/asked"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ip6tables was asked, though the kernel has none of its tables (%v):\n%s", err, asked)
	}
	if _, err := d.Apply(t.Context(), policy.Compile(dual), netfilter.Trust); err == nil ||
		!strings.Contains(err.Error(), "ip6tables") {
		t.Errorf("with IPv6 pods: %v, want an error that names ip6tables", err)
	}
	if err := d.CleanOtherFlavour(t.Context()); err != nil {
		t.Error(err)
	}
	mustRemove(t, d)
	// If ip6tables works, Apply must succeed, even if another program has used ip6tables before.
	t.Setenv("PATH", path)
	nodetest.Run(t, "ip6tables", "-t", "mangle", "-A", "FORWARD", "-j", "ACCEPT")
	d = driver(t, NFT)
	for range 2 { // IPv6 is added, removed, and added again
		mustApply(t, d, policy.Compile(four), netfilter.Trust)
		if out := nodetest.Run(t, "ip6tables-save"); strings.Contains(out, "WEIR") {
			t.Errorf("needless rules for IPv6:\n%s", out)
		}
		mustApply(t, d, policy.Compile(dual), netfilter.Trust)
		out := nodetest.Run(t, "ip6tables", "-t", "mangle", "-S", "FORWARD")
		if !strings.HasPrefix(out, "-P FORWARD ACCEPT\n-A FORWARD -j WEIR-FORWARD") ||
			strings.Count(out, "-j WEIR-FORWARD") != 1 {
			t.Errorf("weir's rule isn't first:\n%s", out)
		}
		for _, hook := range []string{"mangle INPUT", "filter FORWARD", "nat POSTROUTING"} {
			table, chain, _ := strings.Cut(hook, " ")
			if out := nodetest.Run(t, "ip6tables", "-t", table, "-S", chain); strings.Count(out, "-j WEIR-") != 1 {
				t.Errorf("%s has no rule of weir's:\n%s", hook, out)
			}
		}
	}
}
