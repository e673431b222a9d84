package agent

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestEventsGetNoLargeSets: a round for an event isolates the pods of a new policy, and makes no entry of the policy's
// large set. Later rounds make the set.
func TestEventsGetNoLargeSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, m, r := remembering(t)
	r.attach("web", "10.88.0.2")
	a.takeRecords(dirwatch.Change{Lost: true})
	was, now := healthy(), healthy()
	a.handleAll(sourceUpdate{policy.Difference(policy.Objects{}, *was), nil, time.Now()})
	a.reconcile(t.Context(), netfilter.All)
	block := networkingv1.IPBlock{CIDR: "10.0.0.0/8"}
	for i := range 60 {
		block.Except = append(block.Except, netip.AddrFrom4([4]byte{10, byte(4 * i), 1, 1}).String()+"/32")
	}
	large := allow("large", &metav1.LabelSelector{}, networkingv1.NetworkPolicyPeer{IPBlock: &block})
	now.Policies = append(now.Policies, large)
	networks := func() (n int) {
		for _, s := range m.last.Sets {
			if s.Kind == ruleset.Networks && s.Role == ruleset.Peers {
				n += s.Entries.Len()
			}
		}
		return n
	}
	before := networks()
	if a.handleAll(sourceUpdate{policy.Difference(*was, *now), nil, time.Now()}); !a.cluster.hurried {
		t.Fatal("the policy's round isn't hurried")
	}
	next := a.reconcile(t.Context(), netfilter.Trust)
	isolates := func(c ruleset.Class) bool { return slices.Contains(c.Policies, "shop/large") && len(c.Pods) == 1 }
	if !slices.ContainsFunc(m.last.Classes, isolates) {
		t.Error("the round for the event leaves the pod as it was")
	}
	if n := networks(); n != before || next != time.Nanosecond {
		t.Errorf("the round for the event makes %d entries, and the next comes after %v", n-before, next)
	}
	rounds, last := 0, before
	for ; next == time.Nanosecond; rounds++ {
		next = a.reconcile(t.Context(), netfilter.Trust)
		if n := networks() - last; n > 256 {
			t.Errorf("round %d makes %d entries", rounds, n)
		}
		last = networks()
	}
	if last-before < 500 || rounds < 3 {
		t.Errorf("%d rounds make %d entries", rounds, last-before)
	}
}

// TestSlicesRest: after quickSlices slices (rounds that each make a part of the sets) in a row, the loop rests before
// each further slice: three times as long as the last round took, but at most mostRest. If rounds for events have
// delayed a slice for longer than mostRest, the slice comes without a rest.
func TestSlicesRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &agent{}
		a.cluster.engine = policy.NewEngine("") // without a ruleset: another slice is always due
		next := func(took time.Duration, hurried bool) time.Duration {
			r := &round{agent: a, began: time.Now()}
			a.cluster.hurried = hurried
			time.Sleep(took)
			r.continueSlices(t.Context())
			return r.next
		}
		for i := range quickSlices {
			if d := next(3*time.Millisecond, false); d != time.Nanosecond {
				t.Errorf("slice %d comes after %v", i, d)
			}
		}
		for i, tc := range []struct {
			took    time.Duration
			hurried bool
			want    time.Duration
		}{
			{3 * time.Millisecond, false, 9 * time.Millisecond},
			{7 * time.Millisecond, true, 21 * time.Millisecond},
			{mostRest, true, time.Nanosecond},
			{5 * time.Millisecond, false, 15 * time.Millisecond},
			{mostRest / 2, false, mostRest},
		} {
			if got := next(tc.took, tc.hurried); got != tc.want {
				t.Errorf("%d: after a round of %v the next slice comes after %v, want %v", i, tc.took, got, tc.want)
			}
		}
		a.cluster.engine.Ruleset()
		if d := next(time.Millisecond, false); d != 0 || a.cluster.slices != 0 {
			t.Errorf("without a slice, a round comes after %v", d)
		}
	})
}
