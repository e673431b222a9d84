package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy/enforced"
)

// TestPosition: once the delta of the returned number has been taken, all changes up to the returned position are
// known.
func TestPosition(t *testing.T) {
	c := newCluster()
	s := &Source{}
	want := func(when string, at enforced.Position, delta uint64, ok bool) {
		t.Helper()
		gotAt, gotDelta, gotOK := s.Position()
		if gotOK != ok || ok && (gotAt != at || gotDelta != delta) {
			t.Errorf("%s: %+v, %d, %v", when, gotAt, gotDelta, gotOK)
		}
	}
	want("before Run", enforced.Position{}, 0, false)
	s.published.cluster = c
	pod := func(app, version string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "a", ResourceVersion: version, Labels: map[string]string{"app": app},
		}}
	}
	done := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := c.mirrors
	done(m.pods.Replace([]any{pod("1", "5")}, "10"))
	done(m.namespaces.Replace(nil, "11"))
	done(m.nodes.Replace(nil, "12"))
	want("before all lists", enforced.Position{}, 0, false)
	done(m.policies.Replace(nil, "13"))
	at := enforced.Position{Pods: 10, Namespaces: 11, Nodes: 12, Policies: 13}
	want("before the first delta", at, 1, true)
	if d := c.nextDelta(); d.Number != 1 {
		t.Errorf("the first delta is %d", d.Number)
	}
	want("after the first delta", at, 1, true)
	event := func(app, version string) {
		t.Helper()
		done(m.pods.Update(pod(app, version)))
		m.pods.UpdateResourceVersion(version)
	}
	event("1", "20")
	at.Pods = 20
	want("after a change that means nothing", at, 1, true)
	if d := c.nextDelta(); !d.Empty() || d.Number != 1 {
		t.Errorf("the delta without changes is %d", d.Number)
	}
	event("2", "30")
	at.Pods = 30
	want("after a change", at, 2, true)
	event("2", "31")
	at.Pods = 31
	if want("after another that means nothing", at, 2, true); c.nextDelta().Number != 2 {
		t.Error("the delta with the change isn't 2")
	}
	want("after its delta", at, 2, true)
	m.nodes.UpdateResourceVersion("not a number")
	want("a server with other versions", at, 2, false)
}
