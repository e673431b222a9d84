package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
)

// told returns an empty engine, and a delta with three pods and a policy that allows the peers.
func told(peers ...networkingv1.NetworkPolicyPeer) (*Engine, *Delta) {
	d := NewDelta()
	for i, name := range []string{"web", "x", "y"} {
		d.Pods[Name{"a", name}] = []*Pod{{
			Namespace: "a", Name: name, Labels: map[string]string{"app": "a"},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 88, 1, byte(i)}), netip.MustParseAddr(fmt.Sprint("fd00::", i))},
		}}
	}
	d.Policies[Name{"a", "np"}] = []*networkingv1.NetworkPolicy{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "np"},
		Spec:       networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers}}},
	}}
	return NewEngine(""), d
}

func endpointOf(name string, addrs ...string) Endpoint {
	e := Endpoint{ID: name, Pod: PodRef{Namespace: "a", Name: name}, Enforcement: conf.Strict}
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, Address{Addr: netip.MustParseAddr(a)})
	}
	return e
}

// TestSumOfSizes: if the node no longer needs sets of a family, changes of these sets don't change the sum of the sizes
// of needed sets.
func TestSumOfSizes(t *testing.T) {
	e, d := told(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}})
	e.Apply(d)
	e.SetEndpoints([]Endpoint{endpointOf("web", "10.88.0.2", "fd00::99")})
	e.Ruleset()
	e.SetEndpoints([]Endpoint{endpointOf("web", "10.88.0.2")})
	e.Ruleset()
	before := e.compiler.wanted.entries
	y := *d.Pods[Name{"a", "y"}][0]
	y.Addresses = y.Addresses[:1]
	gone := NewDelta()
	gone.Pods[Name{"a", "y"}] = []*Pod{&y}
	e.Apply(gone)
	if e.Changed(); e.compiler.wanted.entries != before {
		t.Errorf("the sum is %v after a change of IPv6 addresses, and %v before", e.compiler.wanted.entries, before)
	}
}

// TestManyNamespaceSelectors: the engine allocates at most 500 MiB to make 800 namespaceSelectors that match 500
// namespaces each, and at most 500 MiB to drop them. Memory that grows with the square of the number of selectors
// would exceed this limit.
func TestManyNamespaceSelectors(t *testing.T) {
	const namespaces, selectors, limit = 500, 800, 500 << 20
	var peers []networkingv1.NetworkPolicyPeer
	for i := range selectors {
		peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "team", Operator: metav1.LabelSelectorOpNotIn, Values: []string{fmt.Sprint(i)}},
			},
		}})
	}
	e, d := told(peers...)
	for i := range namespaces {
		name := fmt.Sprint("n", i)
		d.Namespaces[name] = &Namespace{Name: name}
		addr := netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)})
		d.Pods[Name{name, "p"}] = []*Pod{{Namespace: name, Name: "p", Addresses: []netip.Addr{addr}}}
	}
	e.Apply(d)
	took := func(what string, f func()) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		e.Ruleset()
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > limit {
			t.Errorf("%s takes %d MiB", what, n>>20)
		} else {
			t.Logf("%s takes %d MiB", what, n>>20)
		}
	}
	e.Ruleset()
	took("making the selectors", func() { e.SetEndpoints([]Endpoint{endpointOf("web", "10.88.0.2")}) })
	if len(e.selectors.byKey) != selectors {
		t.Errorf("there are %d selectors", len(e.selectors.byKey))
	}
	took("dropping the selectors", func() { e.SetEndpoints(nil) })
	if len(e.selectors.byKey) != 0 {
		t.Errorf("there are %d selectors", len(e.selectors.byKey))
	}
}

// TestLabelHash: two pods have different hashes if two of their labels have swapped values. Otherwise a tenant could
// make thousands of crowds with the same hash.
func TestLabelHash(t *testing.T) {
	a := labelHash(&Pod{Labels: map[string]string{"a": "1", "b": "2"}})
	if b := labelHash(&Pod{Labels: map[string]string{"b": "1", "a": "2"}}); a == b {
		t.Error("the hashes are equal")
	}
	if again := labelHash(&Pod{Labels: map[string]string{"b": "2", "a": "1"}}); a != again {
		t.Error("the hashes of equal labels differ")
	}
}
