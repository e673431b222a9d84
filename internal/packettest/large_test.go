package packettest

import (
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLargePolicies: a policy that is too large is reported as a problem, and allows nothing. All other policies are
// enforced.
func TestLargePolicies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	var (
		web, big = netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.0.4")
		// policytest.EvenAddresses(100_000) returns every second address from 172.16.0.0 on. even is the first of
		// these addresses, and last is the last one.
		even, last = netip.MustParseAddr("172.16.0.0"), netip.MustParseAddr("172.19.13.62")
		odd        = even.Next()
	)
	n, state := attached(t, []uint16{1, 2, 7999, 8000}, pod("x", "web", "10.88.0.2"), pod("x", "big", "10.88.0.4"))
	for _, a := range []netip.Addr{even, odd, last} {
		n.AddOutside(a)
	}
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	sane := policytest.Letting("sane", app("web"), policytest.EvenAddresses(1), policytest.OddPorts(1)...)
	excepts := policytest.Letting("big", app("big"), policytest.AllButEven(4000))
	excepts.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingress", "Egress"}
	for i, tc := range []struct {
		name     string
		policy   *networkingv1.NetworkPolicy
		pass     []verdict.Packet
		closed   []verdict.Packet
		problems int
	}{
		{
			"4,000 ports", policytest.Letting("big", app("big"), nil, policytest.OddPorts(4000)...),
			to(big, even, 1, 7999),
			append(to(big, even, 2, 8000), verdict.Packet{Src: even, Dst: big, Proto: ruleset.UDP, Port: 1}), 0,
		},
		{
			"100,000 ipBlocks",
			policytest.Letting("big", app("big"), policytest.EvenAddresses(100_000), policytest.OddPorts(4000)...),
			append(to(big, even, 1), to(big, last, 7999)...), append(to(big, odd, 1), to(big, last, 2)...), 0,
		},
		{"4,000 excepts", excepts, to(big, odd, 1, 2), append(to(big, even, 1), to(odd, big, 1)...), 0},
		{"1,000 selectors", policytest.Letting("big", app("big"), policytest.Selectors(0, 1000)), nil, to(big, even, 1), 0},
		{
			"too many ipBlocks", policytest.Letting("big", app("big"), policytest.EvenAddresses(150_000)), nil,
			to(big, even, 1), 1,
		},
		{
			"too many selectors",
			policytest.Letting("big", app("big"), append(policytest.Selectors(0, 2000), policytest.EvenAddresses(1)...)), nil,
			to(big, even, 1), 1,
		},
	} {
		n.Use(Names[i%len(Names)])
		state.Policies = []*networkingv1.NetworkPolicy{tc.policy, sane}
		began := time.Now()
		want := n.Ruleset(state)
		compiled := time.Since(began)
		n.Enforce(state)
		applied := time.Since(began) - compiled
		if len(want.Problems) != tc.problems {
			t.Errorf("%s: problems: %v", tc.name, want.Problems)
		}
		began = time.Now()
		if r, err := n.Apply(t.Context(), want, netfilter.All); err != nil || r.Changed {
			t.Errorf("%s: read again, the kernel doesn't hold what was written: %+v, %v", tc.name, r, err)
		}
		t.Logf("%s, %s: %s to compile, %s to apply, %s to read", tc.name, n.Writer, compiled.Round(time.Millisecond),
			applied.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		n.want(tc.name+", "+string(n.Writer), append(to(web, even, 1), tc.pass...),
			append(append(to(web, even, 2), to(web, odd, 1)...), tc.closed...))
	}
}
