package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// routedPods returns a state with one pod for each number from first to last. The plugin ptp has made the pods' links.
func routedPods(first, last int) (s policy.State) {
	for i := first; i <= last; i++ {
		e := policy.Endpoint{
			ID: fmt.Sprintf("c%03d:eth0", i), Enforcement: conf.Strict, Chained: true, HostIf: fmt.Sprintf("veth%03d", i),
			Pod: policy.PodRef{Namespace: "x", Name: fmt.Sprintf("p%03d", i)},
		}
		for _, a := range []string{fmt.Sprintf("10.88.0.%d", i), fmt.Sprintf("fd00:88::%x", i)} {
			addr := netip.MustParseAddr(a)
			e.Addresses = append(e.Addresses, policy.Address{Addr: addr, Subnet: policytest.Of[conf.FamilyOf(addr)].Subnet})
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// TestManyRoutedPods: a node can have many pods behind the plugin ptp, although one set in the kernel has too little
// room for the links of all these pods. Apply succeeds even if many of these pods come or go at once.
func TestManyRoutedPods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	for _, pods := range [][2]int{{1, 20}, {1, 110}, {60, 200}, {1, 40}, {41, 104}, {1, 250}, {250, 250}, {1, 110}} {
		want := policy.Compile(routedPods(pods[0], pods[1]))
		mustApply(t, d, want, netfilter.All)
		if r := mustApply(t, driver(t, NFT), want, netfilter.All); r.Changed {
			t.Errorf("pods %v: another driver has changed something", pods)
		}
	}
}

// TestNoStepLetsRoutedPodsForge: pods behind ptp come and go. At no step can a pod send packets with the address of
// another pod. After each change, each pod can send packets with its own address.
func TestNoStepLetsRoutedPodsForge(t *testing.T) {
	r, m, denied := rand.New(rand.NewPCG(1, 5)), newModel(t), 0
	for round := range 6 {
		first := 1 + r.IntN(150)
		s := routedPods(first, first+r.IntN(100))
		for _, e := range s.Endpoints { // without Pod objects, the endpoints would be closed
			s.Pods = append(s.Pods, policy.Pod{Namespace: e.Pod.Namespace, Name: e.Pod.Name})
		}
		want := policy.Compile(s)
		after := simulator(t, want)
		var own, forged []ruleset.Packet
		for range 30 {
			e, other := s.Endpoints[r.IntN(len(s.Endpoints))], s.Endpoints[r.IntN(len(s.Endpoints))]
			for f := range conf.Families {
				p := ruleset.Packet{Dst: policytest.Of[f].Outside, Proto: ruleset.TCP, Port: 80, In: e.HostIf, Out: "eth0"}
				p.Src = e.Addresses[f].Addr
				own = append(own, p)
				if p.Src = other.Addresses[f].Addr; other.ID != e.ID && round > 0 && !m.allows(p) {
					forged = append(forged, p)
				}
			}
		}
		m.plan(makePlan(m.state, lowerOnto(m.state, want)), func(step string) {
			for _, p := range forged {
				if m.allows(p) {
					t.Fatalf("after %q: %+v passes", step, p)
				}
			}
		})
		denied += len(forged)
		for _, p := range own {
			if !after.Allows(p) || !m.allows(p) {
				t.Fatalf("%+v passes: %v, and by the ruleset: %v", p, m.allows(p), after.Allows(p))
			}
		}
	}
	if denied < 50 {
		t.Errorf("only %d forged packets were denied before the changes", denied)
	}
}
