package nftables

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
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

// TestApply applies random rulesets one after the other. After each, a new driver must find nothing to change: the
// kernel lists exactly the rules and sets that were written. At the end Remove must remove these and nothing else.
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
	came, went, six := 0, 0, false // how often IPv6 has come and gone; whether it is there
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
			s = random() // a state that has nothing to do with the last
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
	nodetest.Run(t, "nft", "add", "table", "ip", "somebody")
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nodetest.Run(t, "nft", "list", "ruleset"); strings.Contains(left, "weir") ||
		!strings.Contains(left, "somebody") {
		t.Errorf("left after Remove:\n%s", left)
	}
}

// dualStack returns a state in which a policy isolates pods with addresses of each family.
func dualStack() policy.State {
	r := rand.New(rand.NewPCG(5, 1))
	for {
		s := policytest.State(r)
		in := map[conf.Family]bool{}
		for _, set := range policy.Compile(s).Sets {
			if set.Role == ruleset.Members && !strings.Contains(set.Name, "open") && set.Entries.Len() > 0 {
				in[set.Family] = true
			}
		}
		if len(in) == 2 && len(s.Policies) > 1 && len(s.Endpoints) > 2 {
			return s
		}
	}
}

func TestDriftIsRepaired(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	want := policy.Compile(dualStack())
	mustApply(t, d, want, netfilter.All)
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
