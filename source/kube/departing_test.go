package kube

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/test/deltas"
)

// TestDeparting: while a namespace is being deleted, its policies stay in force until its pods are gone. If the agent
// can't know some of the policies, it reports a problem.
func TestDeparting(t *testing.T) {
	deny, allow := namedPolicy("deny"), namedPolicy("allow")
	both, one, none := []*networkingv1.NetworkPolicy{deny, allow}, []*networkingv1.NetworkPolicy{allow},
		[]*networkingv1.NetworkPolicy{}
	type step struct {
		after       time.Duration
		namespace   *corev1.Namespace // what the watch reports; nil if there is no event
		gone        bool
		live        []*networkingv1.NetworkPolicy
		uninhabited bool
		want        []string
	}
	for name, steps := range map[string][]step{
		"policies go before the pods": {
			{live: both, want: []string{"allow", "deny"}},
			{after: time.Hour, namespace: departed("one"), live: both, want: []string{"allow", "deny"}},
			{live: one, want: []string{"allow", "deny"}},
			{after: time.Hour, live: none, want: []string{"allow", "deny"}},
			{namespace: departed("one"), gone: true, live: none, want: []string{"allow", "deny"}},
			{live: none, uninhabited: true, want: nil},
		},
		"the watch on namespaces is late": {
			{live: both, want: []string{"allow", "deny"}},
			{after: time.Hour, live: one, want: []string{"allow"}},
			{after: time.Second, namespace: departed("one"), live: one, want: []string{"allow", "deny"}},
		},
		"a policy that was deleted long before": {
			{live: both, want: []string{"allow", "deny"}},
			{after: time.Hour, live: one, want: []string{"allow"}},
			{after: time.Hour, namespace: departed("one"), live: one, want: []string{"allow"}},
		},
		"a policy that was made again": {
			{live: both, want: []string{"allow", "deny"}},
			{after: time.Hour, live: one, want: []string{"allow"}},
			{live: slices.Clone(both), want: []string{"allow", "deny"}},
			{namespace: departed("one"), live: both, want: []string{"allow", "deny"}},
		},
		"the agent starts in that moment": {
			{namespace: departed("one"), live: one, want: []string{unknownPolicy, "allow"}},
			{after: time.Hour, live: none, want: []string{unknownPolicy, "allow"}},
			{namespace: departed("one"), gone: true, live: none, uninhabited: true, want: nil},
		},
		"the agent starts just before the watch tells of it": {
			{live: one, want: []string{"allow"}},
			{after: time.Second, namespace: departed("one"), live: one, want: []string{unknownPolicy, "allow"}},
		},
		"another namespace gets the name": {
			{live: both, want: []string{"allow", "deny"}},
			{after: time.Hour, namespace: departed("one"), live: none, want: []string{"allow", "deny"}},
			{namespace: departed("one"), gone: true, live: none, want: []string{"allow", "deny"}},
			{namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns-1", UID: "two"}}, live: none, want: nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			now, sum, live := time.Now(), deltas.NewSum(), map[string]*networkingv1.NetworkPolicy{}
			c := newCluster()
			c.now = func() time.Time { return now }
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "a"}}
			add(t, c.mirrors.pods, pod)
			for i, s := range steps {
				now = now.Add(s.after)
				if s.namespace != nil && s.gone {
					remove(t, c.mirrors.namespaces, s.namespace)
				} else if s.namespace != nil {
					add(t, c.mirrors.namespaces, s.namespace)
				}
				for _, p := range s.live {
					add(t, c.mirrors.policies, p)
				}
				for name, p := range live {
					if !slices.Contains(s.live, p) {
						remove(t, c.mirrors.policies, p)
						delete(live, name)
					}
				}
				for _, p := range s.live {
					live[p.Name] = p
				}
				if s.uninhabited {
					remove(t, c.mirrors.pods, pod)
				}
				o := sum.Add(c.nextDelta())
				var got []string
				for _, p := range o.Policies {
					got = append(got, p.Name)
				}
				problems := o.Problems
				slices.Sort(got)
				if !slices.Equal(got, s.want) {
					t.Errorf("step %d: %q count, want %q", i, got, s.want)
				}
				if unknown := slices.Contains(got, unknownPolicy); unknown != (len(problems) > 0) {
					t.Errorf("step %d: problems %v, want one if and only if policies are unknown", i, problems)
				}
			}
		})
	}
}

func namedPolicy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: name}}
}

func departed(uid types.UID) *corev1.Namespace {
	now := metav1.Now()
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns-1", UID: uid, DeletionTimestamp: &now}}
}
