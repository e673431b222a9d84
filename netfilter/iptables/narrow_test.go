package iptables

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestApplyEntries: if only entries of peers' sets have changed, applyEntries makes the change. Otherwise it leaves the
// change to a whole Apply.
func TestApplyEntries(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	r := rand.New(rand.NewPCG(9, 9))
	var now ruleset.Ruleset
	var pool []ruleset.Set // sets of peers whose entries the test changes
	for len(pool) < 5 {
		now = policy.Compile(policytest.State(r))
		pool = slices.DeleteFunc(slices.Clone(now.Sets), func(s ruleset.Set) bool {
			return s.Role != ruleset.Peers || s.Entries.Len() < 2
		})
	}
	mustApply(t, d, now, netfilter.All)
	narrow := func(next ruleset.Ruleset) (netfilter.Result, bool) {
		t.Helper()
		result, done, err := d.applyEntries(next)
		if err != nil {
			t.Fatal(err)
		}
		return result, done
	}
	for i := range 30 {
		s := pool[i%len(pool)]
		list := slices.Collect(s.Entries.All())
		at := slices.IndexFunc(now.Sets, func(o ruleset.Set) bool { return o.Name == s.Name })
		next := now
		next.Sets = slices.Clone(now.Sets)
		e := list[r.IntN(len(list))]
		_, had := next.Sets[at].Entries.Get(e.Element)
		if had {
			next.Sets[at].Entries = next.Sets[at].Entries.Without(e.Element)
		} else {
			next.Sets[at].Entries = next.Sets[at].Entries.With(e)
		}
		result, done := narrow(next)
		if !done || !result.Changed || result.Closes != had || result.Rules {
			t.Fatalf("change %d of %s: %+v, %v; deleted %v", i, s.Name, result, done, had)
		}
		if got := mustApply(t, driver(t, NFT), next, netfilter.All); got.Changed {
			t.Fatalf("change %d of %s: a driver that reads everything changes something", i, s.Name)
		}
		now = next
	}
	if result, done := narrow(now); !done || result.Changed {
		t.Errorf("the same ruleset again: %+v, %v", result, done)
	}

	for name, change := range map[string]func(*ruleset.Ruleset){
		"a set of another role": func(n *ruleset.Ruleset) {
			i := slices.IndexFunc(n.Sets, func(s ruleset.Set) bool { return s.Role == ruleset.Members && s.Entries.Len() > 0 })
			for e := range n.Sets[i].Entries.All() {
				n.Sets[i].Entries = n.Sets[i].Entries.Without(e.Element)
				break
			}
		},
		"a set less":   func(n *ruleset.Ruleset) { n.Sets = n.Sets[1:] },
		"another kind": func(n *ruleset.Ruleset) { n.Sets[0].Kind = "other" },
		"a rule less": func(n *ruleset.Ruleset) {
			n.Chains = slices.Clone(n.Chains)
			n.Chains[0].Rules = n.Chains[0].Rules[1:]
		},
	} {
		next := now
		next.Sets = slices.Clone(now.Sets)
		change(&next)
		if _, done := narrow(next); done {
			t.Errorf("%s: only entries were applied", name)
		}
	}
	if err := d.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, done := narrow(now); done {
		t.Error("after a read of the kernel only entries were applied")
	}
	mustApply(t, d, now, netfilter.Trust)

	at := slices.IndexFunc(now.Sets, func(s ruleset.Set) bool {
		return s.Role == ruleset.Peers && s.Opens && s.Kind == ruleset.Addresses && s.Family == conf.IPv4
	})
	next := now
	next.Sets = slices.Clone(now.Sets)
	odd := ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix("2001:db8::1/128")}}
	next.Sets[at].Entries = next.Sets[at].Entries.With(odd)
	_, done, err := d.applyEntries(next)
	refused := (*netfilter.RefusedError)(nil)
	if !done || !errors.As(err, &refused) || len(refused.Refused) != 1 {
		t.Fatalf("an entry that the kernel refuses: %v, %v", done, err)
	}
	if _, done := narrow(now); done {
		t.Error("after a refusal only entries were applied")
	}
	if got := mustApply(t, d, now, netfilter.Trust); got.Changed {
		t.Error("after a refusal the driver takes the refused entry for one of the kernel's")
	}
}
