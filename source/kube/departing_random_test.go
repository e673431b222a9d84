package kube

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/deltas"
)

type departures struct {
	known   map[string]*known
	recent  map[policy.Name]time.Time
	live    map[policy.Name]bool
	started time.Time
}

type known struct {
	uid  types.UID
	gone bool
	kept map[string]bool
}

func (d *departures) namespace(ns *corev1.Namespace, gone bool, now time.Time) {
	of := d.known[ns.Name]
	if of != nil && of.uid != ns.UID {
		delete(d.known, ns.Name)
		of = nil
	}
	switch {
	case of != nil && gone:
		of.gone = true
	case of == nil && !gone && ns.DeletionTimestamp != nil:
		d.known[ns.Name] = &known{uid: ns.UID, kept: map[string]bool{unknownPolicy: now.Sub(d.started) < maxWatchLag}}
	}
}

func (d *departures) policies(now time.Time, live map[policy.Name]bool, inhabited map[string]bool) []string {
	maps.DeleteFunc(d.recent, func(name policy.Name, at time.Time) bool { return now.Sub(at) > maxWatchLag || live[name] })
	for name := range live {
		if of := d.known[name.Namespace]; of != nil {
			delete(of.kept, name.Name)
		}
	}
	for name := range d.live {
		if !live[name] {
			d.recent[name] = now
		}
	}
	d.live = maps.Clone(live)
	all := slices.Collect(maps.Keys(live))
	for name, of := range d.known {
		if of.gone && !inhabited[name] {
			delete(d.known, name)
			continue
		}
		for removed := range d.recent {
			if removed.Namespace == name {
				of.kept[removed.Name] = true
				delete(d.recent, removed)
			}
		}
		for kept, counts := range of.kept {
			if counts {
				all = append(all, policy.Name{Namespace: name, Name: kept})
			}
		}
	}
	var names []string
	for _, name := range all {
		names = append(names, name.Namespace+"/"+name.Name)
	}
	slices.Sort(names)
	return names
}

// TestDepartingAtRandom: after each of many random events, the policies in force are equal to those of a simple model
// (type departures).
func TestDepartingAtRandom(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 5))
		now := time.Unix(1_800_000_000, 0)
		c := began(t)
		c.now = func() time.Time { return now }
		c.departing.started = now
		sum := deltas.NewSum()
		spec := &departures{known: map[string]*known{}, recent: map[policy.Name]time.Time{}, started: now}
		namespaces := map[string]*corev1.Namespace{}
		live, pods := map[policy.Name]bool{}, map[string]bool{}
		var story []string
		for range 40 {
			now = now.Add([]time.Duration{0, time.Second, 40 * time.Second, time.Hour}[r.IntN(4)])
			meta := metav1.ObjectMeta{Namespace: fmt.Sprint("ns-", r.IntN(2)), Name: string("ab"[r.IntN(2)])}
			name := policy.Name{Namespace: meta.Namespace, Name: meta.Name}
			np, pod := &networkingv1.NetworkPolicy{ObjectMeta: meta}, &corev1.Pod{ObjectMeta: meta}
			pod.Name = "p"
			what := r.IntN(7)
			story = append(story, fmt.Sprintf("%s: %d %v", now.Format(time.TimeOnly), what, name))
			switch what {
			case 0, 1:
				ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: meta.Namespace, UID: types.UID(fmt.Sprint(r.IntN(2)))}}
				if at := metav1.NewTime(now); what == 1 {
					ns.DeletionTimestamp = &at
				}
				namespaces[ns.Name] = ns
				add(t, c.mirrors.namespaces, ns)
				spec.namespace(ns, false, now)
			case 2:
				if ns := namespaces[meta.Namespace]; ns != nil {
					delete(namespaces, ns.Name)
					remove(t, c.mirrors.namespaces, ns)
					spec.namespace(ns, true, now)
				}
			case 3:
				live[name] = true
				add(t, c.mirrors.policies, np)
			case 4:
				delete(live, name)
				remove(t, c.mirrors.policies, np)
			case 5:
				pods[meta.Namespace] = true
				add(t, c.mirrors.pods, pod)
			case 6:
				delete(pods, meta.Namespace)
				remove(t, c.mirrors.pods, pod)
			}
			want := spec.policies(now, live, pods)
			var got []string
			o := sum.Add(c.nextDelta())
			for _, p := range o.Policies {
				got = append(got, p.Namespace+"/"+p.Name)
			}
			slices.Sort(got)
			unknown := 0
			for name, of := range spec.known {
				if of.kept[unknownPolicy] && pods[name] {
					unknown++
				}
			}
			if !slices.Equal(got, want) || len(o.Problems) != unknown {
				t.Fatalf("seed %d, after %q: %q count, want %q; problems %v", seed, story, got, want, o.Problems)
			}
		}
	}
}

// TestDepartingForgets: departing forgets a policy that was deleted longer ago than maxWatchLag.
func TestDepartingForgets(t *testing.T) {
	now := time.Now()
	c := began(t)
	c.now = func() time.Time { return now }
	for i := range 3 {
		p := namedPolicy(fmt.Sprint("p", i))
		add(t, c.mirrors.policies, p)
		remove(t, c.mirrors.policies, p)
		now = now.Add(maxWatchLag / 2)
	}
	c.expire()
	if d := c.departing; len(d.recent["ns-1"]) != 2 || len(d.expiry) != 2 {
		t.Errorf("%v, %v: only the first has been deleted for longer than %s", d.recent, d.expiry, maxWatchLag)
	}
	now = now.Add(time.Hour)
	c.expire()
	if d := c.departing; len(d.recent)+len(d.expiry) > 0 {
		t.Errorf("left %v, %v", d.recent, d.expiry)
	}
}

// TestDepartingInLists: the watches miss all events of a namespace's deletion. So the source learns only from new lists
// that the objects are gone. The policy still stays in force until the pod is gone.
func TestDepartingInLists(t *testing.T) {
	c, sum := began(t), deltas.NewSum()
	c.departing.started = time.Now().Add(-time.Hour)
	pod := newPod(func(p *corev1.Pod) { p.Namespace = "ns-1" })
	list(t, c.mirrors.pods, true, pod)
	list(t, c.mirrors.policies, true, namedPolicy("deny"))
	list(t, c.mirrors.namespaces, true, departed("one"))
	for i, step := range []struct {
		change func()
		want   int
	}{
		{func() {}, 1},
		{func() { list(t, c.mirrors.policies, true) }, 1},
		{func() { list(t, c.mirrors.namespaces, true) }, 1},
		{func() { list(t, c.mirrors.pods, true) }, 0},
	} {
		step.change()
		if o := sum.Add(c.nextDelta()); len(o.Policies) != step.want {
			t.Errorf("step %d: the policies are %v, want %d", i, o.Policies, step.want)
		}
	}
}
