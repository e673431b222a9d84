package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

func newPod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       "ns",
			Name:            "a",
			UID:             "one",
			ResourceVersion: "1",
			Labels:          map[string]string{"app": "a"},
		},
		Spec:   corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "100.96.1.2"}}},
	}
	change(p)
	return p
}

// TestViewOfPods: only fields that policy needs count as a change.
func TestViewOfPods(t *testing.T) {
	same := func(*corev1.Pod) {}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"the same": {same, false},
		"conditions": {func(p *corev1.Pod) {
			p.ResourceVersion, p.Status.Conditions = "2", []corev1.PodCondition{{Type: corev1.PodReady}}
		}, false},
		"another phase, still alive": {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, false},
		"an annotation":              {func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }, false},
		"a label":                    {func(p *corev1.Pod) { p.Labels = map[string]string{"app": "b"} }, true},
		"an address":                 {func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "100.96.1.3" }, true},
		"no address any more":        {func(p *corev1.Pod) { p.Status.PodIPs = nil }, false},
		"no address, finished": {
			func(p *corev1.Pod) { p.Status.PodIPs, p.Status.Phase = nil, corev1.PodSucceeded },
			true,
		},
		"no address, another UID": {func(p *corev1.Pod) { p.Status.PodIPs, p.UID = nil, "two" }, true},
		"a broken address":        {func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "?" }, true},
		"another UID":             {func(p *corev1.Pod) { p.UID = "two" }, true},
		"finished":                {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, true},
	} {
		v := newViews()
		put := func(p *corev1.Pod) bool {
			t.Helper()
			kept, err := keepPod(p)
			if err != nil {
				t.Fatal(err)
			}
			return v.pods.put(kept)
		}
		if !put(newPod(same)) {
			t.Errorf("%s: a new pod is no change", name)
		}
		before, _ := v.pods.all()
		if got := put(newPod(tc.change)); got != tc.want {
			t.Errorf("%s: a change: %v, want %v", name, got, tc.want)
		}
		if after, _ := v.pods.all(); (&after[0] == &before[0]) == tc.want {
			t.Errorf("%s: the list is the same as before: %v", name, !tc.want)
		}
		if put(newPod(tc.change)) {
			t.Errorf("%s: the second time is a change too", name)
		}
		if name == "a broken address" {
			if _, problems := v.pods.all(); len(problems) != 1 {
				t.Errorf("problems %v", problems)
			}
		}
		if !v.pods.remove(newPod(same)) {
			t.Errorf("%s: that it goes is no change", name)
		}
		if pods, problems := v.pods.all(); len(pods)+len(problems) > 0 {
			t.Errorf("%s: left %v, %v", name, pods, problems)
		}
	}
}

// TestViewOfPolicies: an unchanged policy stays the same object in the view, so policy.Parse parses it only once.
func TestViewOfPolicies(t *testing.T) {
	v := newViews()
	np := func(name, version string, types ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: version},
			Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: types},
		}
	}
	for _, o := range []any{np("a", "1"), np("b", "1")} {
		if !v.policies.put(o) {
			t.Error("a new policy is no change")
		}
	}
	before, _ := v.policies.all()
	if v.policies.put(np("a", "2")) {
		t.Error("another version of the same is a change")
	}
	if after, _ := v.policies.all(); !slices.Equal(before, after) {
		t.Error("another version of the same is another object")
	}
	if !v.policies.put(np("a", "3", networkingv1.PolicyTypeEgress)) {
		t.Error("another spec is no change")
	}
	kept := 0
	after, _ := v.policies.all()
	for _, p := range after {
		if slices.Contains(before, p) {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("%d policies stayed the same object, want the one that didn't change", kept)
	}
	if v.policies.remove(np("c", "1")) {
		t.Error("that goes what never was is a change")
	}
	if !v.policies.remove(cache.DeletedFinalStateUnknown{Key: "ns/a"}) {
		t.Error("that one went while nobody was watching is no change")
	}
	if after, _ := v.policies.all(); len(after) != 1 {
		t.Errorf("left %v", after)
	}
}
