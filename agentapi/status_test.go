package agentapi

import "testing"

// TestStateOf: each value of PodStatus.Ingress and PodStatus.Egress means one state, and a summary counts pods by these
// states.
func TestStateOf(t *testing.T) {
	for class, want := range map[string]string{
		ClassOpen: ClassOpen, ClassAudited + "shop/a, shop/b": ClassOpen, ClassClosed: ClassClosed,
		ClassBefore: ClassBefore, ClassUnknown: ClassUnknown, "shop/open": ClassIsolated,
		"shop/a (may select it), or, shop/b": ClassIsolated, "open/a": ClassIsolated,
	} {
		if got := StateOf(class); got != want {
			t.Errorf("%q means %q, want %q", class, got, want)
		}
	}
	for _, tc := range []struct {
		in, out          string
		isolated, closed int
	}{
		{ClassOpen, ClassAudited + "shop/a", 0, 0},
		{ClassOpen, "shop/a", 1, 0},
		{"shop/a", ClassOpen, 1, 0},
		{ClassBefore, ClassBefore, 1, 0},
		{ClassClosed, ClassOpen, 0, 1},
		{"shop/a", ClassClosed, 0, 1},
	} {
		s := Summarise(Status{Pods: []PodStatus{{Ingress: tc.in, Egress: tc.out}}}, "n1", "v")
		if s.Pods != 1 || s.Isolated != tc.isolated || s.Closed != tc.closed {
			t.Errorf("%q and %q: %d pods, %d isolated, %d closed", tc.in, tc.out, s.Pods, s.Isolated, s.Closed)
		}
	}
}
