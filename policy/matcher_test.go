package policy

import (
	"math/rand/v2"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/policy/ruleset"
)

// TestMatcher compares newMatcher with the API's own library on random selectors. Most of these selectors are invalid.
// Both must accept the same selectors, match the same labels, and give a selector the same text. A peer's key is made
// of such texts.
func TestMatcher(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	long := func(n int) string { return strings.Repeat("x", n) }
	label := func() string {
		return pick("a", "b", "a", "b", "a.b_C-9", "example.org/a", "Example.org/a", "", "-a", "a-", "a b", "é", long(63),
			long(64))
	}
	value := func() string {
		return pick("a", "b", "", "a", "b", "", "a.b_C-9", "-a", "a.", "a b", "é", "a/b", long(63), long(64))
	}
	valid := 0
	for range 50_000 {
		s := &metav1.LabelSelector{MatchLabels: map[string]string{}}
		for range r.IntN(3) {
			s.MatchLabels[label()] = value()
		}
		for range r.IntN(3) {
			e := metav1.LabelSelectorRequirement{
				Key: label(), Operator: metav1.LabelSelectorOperator(pick("In", "NotIn", "Exists", "DoesNotExist", "Is")),
			}
			for range r.IntN(4) {
				e.Values = append(e.Values, value())
			}
			s.MatchExpressions = append(s.MatchExpressions, e)
		}
		want, wantErr := metav1.LabelSelectorAsSelector(s)
		got, err := newMatcher(s)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v: %v, and the library's error is: %v", s, err, wantErr)
		}
		if err != nil {
			continue
		}
		valid++
		if got.String() != want.String() || got.Empty() != want.Empty() {
			t.Fatalf("%v is %q, and the library's is %q", s, got, want)
		}
		p := parser{namespace: pick("shop", `"`), text: []byte("an earlier text")}
		peer, inNamespaces := networkingv1.NetworkPolicyPeer{PodSelector: s}, ""
		if r.IntN(2) == 0 {
			p.namespace, peer.NamespaceSelector, inNamespaces = "", s, "selector "+want.String()
		}
		sel, _, err := p.selector(&peer)
		if hash := ruleset.Hash(key("selector", p.namespace, inNamespaces, want.String())); err != nil || sel.key != hash {
			t.Fatalf("%v has the key %s, not %s: %v", s, sel.key, hash, err)
		}
		for range 4 {
			l := map[string]string{pick("a", "b"): value(), pick("b", "example.org/a"): value()}
			if yes := got.ask(l, nil) == yes; yes != want.Matches(labels.Set(l)) {
				t.Fatalf("%v matches %v: %v", got, l, yes)
			}
		}
	}
	if valid < 5000 {
		t.Errorf("only %d selectors are valid", valid)
	}
}
