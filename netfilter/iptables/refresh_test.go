package iptables

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRefresh: after Refresh, Apply repairs everything that another program has changed, even if the ruleset changes
// between two parts of Refresh. If nothing has changed in the kernel, Apply changes nothing.
func TestRefresh(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	r := rand.New(rand.NewPCG(11, 11))
	s := policytest.State(r)
	for len(policy.Compile(s).Sets) < 10 {
		s = policytest.State(r)
	}
	want := policy.Compile(s)
	mustApply(t, d, want, netfilter.All)
	refresh := func(between func(part int)) {
		t.Helper()
		for part := 0; ; part++ {
			done, err := d.Refresh(t.Context(), func() bool { return true })
			if err != nil || part > 1000 {
				t.Fatalf("part %d: %v", part, err)
			}
			if done {
				return
			}
			between(part)
		}
	}
	refresh(func(int) {})
	if got := mustApply(t, d, want, netfilter.Trust); got.Changed {
		t.Error("nobody has changed anything, and the driver changes something")
	}
	for i := range 12 {
		at := slices.IndexFunc(want.Sets, func(s ruleset.Set) bool { return s.Entries.Len() > 0 })
		tampered := i % 3
		switch tampered {
		case 0:
			nodetest.Run(t, "ipset", "flush", want.Sets[at].Name)
		case 1:
			nodetest.Run(t, "ipset", "create", "weir-foreign", "hash:ip")
		case 2:
			nodetest.Run(t, "iptables-nft", "-t", "mangle", "-F", "FORWARD")
		}
		refresh(func(part int) {
			if part%2 == 1 && part < 12 {
				s = policytest.Change(r, s)
				want = policy.Compile(s)
				mustApply(t, d, want, netfilter.Trust)
			}
		})
		mustApply(t, d, want, netfilter.Trust)
		if got := mustApply(t, driver(t, NFT), want, netfilter.All); got.Changed {
			t.Errorf("round %d: after a refresh and an Apply, a driver that reads everything changes something", i)
		}
	}
}
