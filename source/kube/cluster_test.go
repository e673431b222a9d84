package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/deltas"
)

func add(t testing.TB, store cache.ReflectorStore, o any) {
	t.Helper()
	if err := store.Update(o); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, store cache.ReflectorStore, o any) {
	t.Helper()
	if err := store.Delete(o); err != nil {
		t.Fatal(err)
	}
}

func list[O object, I any](t testing.TB, m *mirror[O, I], streaming bool, objects ...O) {
	t.Helper()
	var all []any
	for _, o := range objects {
		if streaming {
			all = append(all, stream(t, m, o))
		} else {
			all = append(all, o)
		}
	}
	if err := m.Replace(all, "1"); err != nil {
		t.Fatal(err)
	}
}

func stream[O object, I any](t testing.TB, m *mirror[O, I], o O) any {
	t.Helper()
	item, err := m.Transformer()(o)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(item); err != nil || key == "" {
		t.Fatalf("the reflector can't keep an item: %q, %v", key, err)
	}
	return item
}

func began(t testing.TB) *cluster {
	t.Helper()
	c := newCluster()
	list(t, c.mirrors.pods, false)
	list(t, c.mirrors.namespaces, false)
	list(t, c.mirrors.nodes, false)
	list(t, c.mirrors.policies, false)
	c.nextDelta()
	for len(c.wake) > 0 {
		<-c.wake
	}
	return c
}

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

func same(*corev1.Pod) {}

// podChanges are changes of the pod that newPod returns. want is true if policy depends on the changed field.
var podChanges = map[string]struct {
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
	"a port": {func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}
	}, true},
	"a port without a name": {func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}
	}, false},
}

// TestPodEvents: an event of a pod wakes the agent's loop, and is part of a delta, only if it changes a field that
// policy needs.
func TestPodEvents(t *testing.T) {
	for name, tc := range podChanges {
		t.Run(name, func(t *testing.T) {
			c := began(t)
			all := deltas.NewSum()
			take := func(want bool) *policy.Objects {
				t.Helper()
				if woken := len(c.wake) > 0; woken != want {
					t.Errorf("the loop is woken: %v, want %v", woken, want)
				}
				for len(c.wake) > 0 {
					<-c.wake
				}
				d := c.nextDelta()
				if d.Empty() == want {
					t.Errorf("the delta is %+v; want a change: %v", d, want)
				}
				return all.Add(d)
			}
			add(t, c.mirrors.pods, newPod(same))
			take(true)
			add(t, c.mirrors.pods, newPod(tc.change))
			o := take(tc.want)
			if problems := len(o.Problems); (problems == 1) != (name == "a broken address") {
				t.Errorf("problems %v", o.Problems)
			}
			add(t, c.mirrors.pods, newPod(tc.change))
			take(false)
			remove(t, c.mirrors.pods, newPod(same))
			if o := take(true); len(o.Pods)+len(o.Problems) > 0 {
				t.Errorf("left %v, %v", o.Pods, o.Problems)
			}
			remove(t, c.mirrors.pods, newPod(same))
			take(false)
			wantNothing(t, c)
		})
	}
}

// TestPack: pack keeps all fields of a pod, with any number of addresses. With one or two addresses, the result has its
// own copy of the addresses.
func TestPack(t *testing.T) {
	for n := range 4 {
		pod := policy.Pod{Namespace: "ns", Name: "a"}
		for i := range n {
			pod.Addresses = append(pod.Addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		packed := pack(pod)
		if !reflect.DeepEqual(*packed, pod) {
			t.Errorf("%+v has become %+v", pod, packed)
		}
		if n > 0 && n <= len(conf.Families) && &packed.Addresses[0] == &pod.Addresses[0] {
			t.Errorf("a pod with %d addresses keeps them in an object of their own", n)
		}
	}
}

// TestSelectorsShareLabels: equal labels in the selectors of several policies are stored once. The stored labels are
// removed with the last of these policies.
func TestSelectorsShareLabels(t *testing.T) {
	c := began(t)
	shared := func(name string) *networkingv1.NetworkPolicy {
		app := func() *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
		}
		peers := []networkingv1.NetworkPolicyPeer{{PodSelector: app()}, {NamespaceSelector: app()}, {PodSelector: nil}}
		return &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: *app(),
				Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: peers}},
				Egress:      []networkingv1.NetworkPolicyEgressRule{{To: peers}},
			},
		}
	}
	add(t, c.mirrors.policies, shared("a"))
	add(t, c.mirrors.policies, shared("b"))
	first := map[uintptr]bool{}
	for _, p := range c.policies {
		for labels := range matchLabels(&p.Spec) {
			first[reflect.ValueOf(*labels).Pointer()] = true
		}
	}
	if len(first) != 1 {
		t.Errorf("equal labels have %d copies", len(first))
	}
	changed := shared("b")
	changed.Spec.PodSelector.MatchLabels = map[string]string{"app": "db"}
	add(t, c.mirrors.policies, changed)
	if n := len(c.selectors.labels.values); n != 2 {
		t.Errorf("the pool has %d labels, not 2", n)
	}
	remove(t, c.mirrors.policies, shared("a"))
	remove(t, c.mirrors.policies, changed)
	wantNothing(t, c)
}

func wantNothing(t *testing.T, c *cluster) {
	t.Helper()
	p := &c.pods
	if n := p.known.Len() + len(p.in) + len(p.apiUIDs) + len(p.lost) + len(c.problems); n > 0 {
		t.Errorf("left: %+v, %v", p, c.problems)
	}
	for _, of := range []*pools{p.common, c.selectors} {
		if n := len(of.labels.values) + len(of.ports.values) + len(of.strings.values); n > 0 {
			t.Errorf("left in the pools: %v, %v, %v", of.labels.values, of.ports.values, of.strings.values)
		}
	}
}

// TestEventsAreCoalesced: after several events of one pod, the delta has only the pod's latest state. Later events
// don't change a delta that was returned before.
func TestEventsAreCoalesced(t *testing.T) {
	c := began(t)
	named := func(name, app string) *corev1.Pod {
		return newPod(func(p *corev1.Pod) { p.Name, p.Labels = name, map[string]string{"app": app} })
	}
	add(t, c.mirrors.pods, named("a", "1"))
	add(t, c.mirrors.pods, named("b", "1"))
	first := c.nextDelta()
	for _, app := range []string{"2", "3", "4"} {
		add(t, c.mirrors.pods, named("a", app))
	}
	remove(t, c.mirrors.pods, named("b", "1"))
	add(t, c.mirrors.pods, named("c", "1"))
	remove(t, c.mirrors.pods, named("c", "1"))
	d := c.nextDelta()
	a, b := d.Pods[policy.Name{Namespace: "ns", Name: "a"}], d.Pods[policy.Name{Namespace: "ns", Name: "b"}]
	if len(a) != 1 || a[0].Labels["app"] != "4" || len(b) != 0 || len(d.Pods) != 3 {
		t.Errorf("the delta is %+v", d.Pods)
	}
	if was := first.Pods[policy.Name{Namespace: "ns", Name: "a"}]; was[0].Labels["app"] != "1" {
		t.Error("an earlier delta has changed")
	}
	if d := c.nextDelta(); !d.Empty() {
		t.Errorf("a second delta has %+v", d)
	}
}

// TestRelist: after a new list of all pods, the delta has only the pods that changed. A running pod keeps its addresses
// if its status has none any more.
func TestRelist(t *testing.T) {
	for name, streaming := range map[string]bool{"streamed": true, "in one piece": false} {
		t.Run(name, func(t *testing.T) {
			pod := func(name, app string) *corev1.Pod {
				return newPod(func(p *corev1.Pod) {
					p.Name, p.Labels = name, map[string]string{"app": app}
					p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: app, ContainerPort: 80}}}}
				})
			}
			lost := pod("lost", "1")
			lost.Status = corev1.PodStatus{}
			c := began(t)
			list(t, c.mirrors.pods, streaming, pod("kept", "1"), pod("gone", "2"), pod("changed", "3"), pod("lost", "1"))
			c.nextDelta()
			// The pods "new" and "newer" have labels that "changed" and "gone" had before, so the source stores these labels
			// once.
			list(t, c.mirrors.pods, streaming, pod("changed", "4"), pod("kept", "1"), pod("new", "3"), pod("newer", "2"), lost)
			d := c.nextDelta()
			got := map[string]string{}
			for name, pods := range d.Pods {
				if got[name.Name] = "gone"; len(pods) == 1 {
					got[name.Name] = pods[0].Labels["app"]
				}
			}
			want := map[string]string{"changed": "4", "new": "3", "newer": "2", "gone": "gone"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if i, _ := c.pod(policy.Name{Namespace: "ns", Name: "lost"}); !i.lost || len(i.Addresses) != 1 {
				t.Errorf("a running pod that has lost its address is %+v", i)
			}
			if n := len(c.pods.common.labels.values); n != 4 {
				t.Errorf("the pools have %d sets of labels, want 4", n)
			}
			list(t, c.mirrors.pods, streaming)
			if d := c.nextDelta(); len(d.Pods) != 5 {
				t.Errorf("after an empty list the delta has %v", d.Pods)
			}
			wantNothing(t, c)
		})
	}
}

// TestAListThatEndsEarlyChangesNothing: if a stream of a list breaks off before its end (a bookmark), the known pods
// stay as they were.
func TestAListThatEndsEarlyChangesNothing(t *testing.T) {
	c := began(t)
	list(t, c.mirrors.pods, true, newPod(same))
	c.nextDelta()
	other := newPod(func(p *corev1.Pod) { p.Name, p.Labels = "b", map[string]string{"app": "b", "x": "y"} })
	stream(t, c.mirrors.pods, other)
	if d := c.nextDelta(); !d.Empty() || c.pods.known.Len() != 1 {
		t.Errorf("half a list counts: %+v", d)
	}
	list(t, c.mirrors.pods, true, newPod(same))
	if d := c.nextDelta(); !d.Empty() {
		t.Errorf("the same list is a change: %+v", d)
	}
	if n := len(c.pods.common.labels.values); n != 1 {
		t.Errorf("the pools have %d sets of labels, want the one that is in use", n)
	}
}

// TestPoliciesStayTheSameObjects: an unchanged policy stays the same object, so it is parsed only once.
func TestPoliciesStayTheSameObjects(t *testing.T) {
	c := began(t)
	np := func(name, version string, types ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: version},
			Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: types},
		}
	}
	all := deltas.NewSum()
	add(t, c.mirrors.policies, np("a", "1"))
	add(t, c.mirrors.policies, np("b", "1"))
	before := all.Add(c.nextDelta()).Policies
	add(t, c.mirrors.policies, np("a", "2"))
	list(t, c.mirrors.policies, true, np("a", "3"), np("b", "3"))
	if d := c.nextDelta(); !d.Empty() || c.policies[nameOf(before[0])] != before[0] {
		t.Errorf("another version of the same is a change: %+v", d)
	}
	add(t, c.mirrors.policies, np("a", "4", networkingv1.PolicyTypeEgress))
	after := all.Add(c.nextDelta()).Policies
	if len(after) != 2 || slices.Contains(before, after[0]) || after[1] != before[1] {
		t.Errorf("%v, then %v: only the first has changed", before, after)
	}
	audited := np("a", "5", networkingv1.PolicyTypeEgress)
	audited.Annotations = map[string]string{policy.AuditAnnotation: "true", "other": "x"}
	add(t, c.mirrors.policies, audited)
	after = all.Add(c.nextDelta()).Policies
	if is, err := policy.Audited(after[0]); !is || err != nil || len(after[0].Annotations) != 1 {
		t.Errorf("%+v, %v: want it to be audited, with no other annotation", after[0], err)
	}
	remove(t, c.mirrors.policies, np("c", "1"))
	if d := c.nextDelta(); !d.Empty() {
		t.Errorf("the end of a policy that never was is a change: %+v", d)
	}
	list(t, c.mirrors.policies, false, np("b", "5"))
	if after := all.Add(c.nextDelta()).Policies; len(after) != 1 || after[0] != before[1] {
		t.Errorf("left %v", after)
	}
}

// TestNamespacesAndNodes: after each event, the sum of all deltas has the present namespaces and nodes.
func TestNamespacesAndNodes(t *testing.T) {
	c := began(t)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", UID: "one"}}
	node := func(name, cidr string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}}}
	}
	all := deltas.NewSum()
	for i, step := range []struct {
		event      func()
		namespaces int
		nodes      []string
		problems   int
		changed    bool
	}{
		{func() { add(t, c.mirrors.namespaces, ns) }, 1, nil, 0, true},
		{func() { add(t, c.mirrors.namespaces, ns.DeepCopy()) }, 1, nil, 0, false},
		{func() { add(t, c.mirrors.nodes, node("b", "10.0.1.0/24")) }, 1, []string{"b"}, 0, true},
		{func() { add(t, c.mirrors.nodes, node("a", "bad")) }, 1, []string{"a", "b"}, 1, true},
		{func() { add(t, c.mirrors.nodes, node("a", "bad")) }, 1, []string{"a", "b"}, 1, false},
		{func() { add(t, c.mirrors.nodes, node("a", "10.0.2.0/24")) }, 1, []string{"a", "b"}, 0, true},
		{func() { list(t, c.mirrors.nodes, true, node("b", "10.0.1.0/24")) }, 1, []string{"b"}, 0, true},
		{func() { remove(t, c.mirrors.namespaces, ns) }, 0, []string{"b"}, 0, true},
	} {
		step.event()
		d := c.nextDelta()
		o := all.Add(d)
		var nodes []string
		for _, n := range o.Nodes {
			nodes = append(nodes, n.Name)
		}
		if len(o.Namespaces) != step.namespaces || !slices.Equal(nodes, step.nodes) || len(o.Problems) != step.problems ||
			d.Empty() == step.changed {
			t.Errorf("step %d: %+v gives %+v", i, d, o)
		}
	}
}
