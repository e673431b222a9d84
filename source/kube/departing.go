package kube

import (
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/policy/ruleset"
)

// maxWatchLag is the longest time by which the watch on namespaces may lag behind the watch on policies. The watch on
// policies may report that a policy is gone, and the watch on namespaces may report up to maxWatchLag later that the
// namespace is being deleted.
const maxWatchLag = time.Minute

// unknownPolicy is the name of the policy that replaces policies that can't be known any more. No object can have this
// name.
const unknownPolicy = "(unknown: the namespace is being deleted)"

// departing keeps the policies of namespaces that are being deleted. Kubernetes before 1.33 deletes the objects of such
// a namespace in no order, so a policy may go while the pods that it isolates still run (CVE-2024-7598, KEP-5080). A
// kept policy stays in force until the namespace and its pods are gone.
//
// An agent that starts while a namespace is being deleted doesn't know which policies the namespace had. It isolates
// all pods of the namespace in both directions, so these pods get only the traffic that the remaining policies allow.
// Each policy can only add to what is allowed, so the remaining policies never allow more than all policies together
// did.
type departing struct {
	mu         sync.Mutex
	namespaces map[string]*departure
	// recent has deleted policies by namespace and name. The watch may report later that their namespace is being
	// deleted.
	recent  map[types.NamespacedName]removed
	live    []*networkingv1.NetworkPolicy // as of the last call of policies
	started time.Time                     // the first call of policies
}

// departure is a namespace that is being deleted.
type departure struct {
	uid    types.UID
	gone   bool // the Namespace object is gone; pods may still run
	unseen bool // the method policies hasn't been called since the departure is known
	kept   map[string]*networkingv1.NetworkPolicy
}

type removed struct {
	policy *networkingv1.NetworkPolicy
	at     time.Time
}

func newDeparting() *departing {
	return &departing{namespaces: map[string]*departure{}, recent: map[types.NamespacedName]removed{}}
}

// watch follows the namespaces. The returned function reports whether departing knows all that existed at the
// beginning.
func (d *departing) watch(informer cache.SharedInformer, changed func()) (cache.InformerSynced, error) {
	see := func(o any, gone bool) {
		if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tombstone.Obj
		}
		if ns, ok := o.(*corev1.Namespace); ok && d.update(ns, gone) {
			changed()
		}
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { see(o, false) },
		UpdateFunc: func(_, o any) { see(o, false) },
		DeleteFunc: func(o any) { see(o, true) },
	})
	if err != nil {
		return nil, err
	}
	return registration.HasSynced, nil
}

// update takes a namespace as it is now, and reports whether the update changes which policies are kept.
func (d *departing) update(ns *corev1.Namespace, gone bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.namespaces[ns.Name]
	if known != nil && known.uid != ns.UID { // another namespace with the same name and new pods
		delete(d.namespaces, ns.Name)
		known = nil
	}
	switch {
	case known != nil && gone:
		known.gone = true
		return true
	case known == nil && !gone && ns.DeletionTimestamp != nil:
		d.namespaces[ns.Name] = &departure{uid: ns.UID, unseen: true, kept: map[string]*networkingv1.NetworkPolicy{}}
		return true
	}
	return false
}

// policies returns the live policies and the kept ones, and problems of namespaces with unknown policies. The elements
// of live must never change: a call with the same slice as the last call means that no policy has changed. inhabited
// reports whether the namespace has pods.
func (d *departing) policies(
	now time.Time, live []*networkingv1.NetworkPolicy, inhabited func(namespace string) bool,
) ([]*networkingv1.NetworkPolicy, []ruleset.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recordRemoved(now, live)
	if d.started.IsZero() {
		d.started = now
	}
	var problems []ruleset.Problem
	all := slices.Clip(live)
	for _, name := range slices.Sorted(maps.Keys(d.namespaces)) {
		departure := d.namespaces[name]
		if departure.gone && !inhabited(name) {
			delete(d.namespaces, name)
			continue
		}
		if departure.unseen && now.Sub(d.started) < maxWatchLag {
			departure.kept[unknownPolicy] = isolateAll(name)
		}
		departure.unseen = false
		for key, r := range d.recent {
			if key.Namespace == name {
				departure.kept[key.Name] = r.policy
				delete(d.recent, key)
			}
		}
		all = slices.AppendSeq(all, maps.Values(departure.kept))
		if _, unknown := departure.kept[unknownPolicy]; unknown && inhabited(name) {
			problems = append(problems, ruleset.Problem{
				Object: "Namespace " + name, Field: "metadata.deletionTimestamp",
				Message: "the namespace was being deleted as this agent started, so policies may be gone that still count; " +
					"its pods get only the traffic that the remaining policies allow",
			})
		}
	}
	return all, problems
}

// recordRemoved compares the policies with those of the last call, and records those that were deleted.
func (d *departing) recordRemoved(now time.Time, live []*networkingv1.NetworkPolicy) {
	maps.DeleteFunc(d.recent, func(_ types.NamespacedName, r removed) bool { return now.Sub(r.at) > maxWatchLag })
	if len(live) == len(d.live) && (len(live) == 0 || &live[0] == &d.live[0]) {
		return // the very list of the last call
	}
	is := make(map[types.NamespacedName]bool, len(live))
	for _, p := range live {
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		is[key] = true
		delete(d.recent, key)
		if departure := d.namespaces[p.Namespace]; departure != nil {
			delete(departure.kept, p.Name)
		}
	}
	for _, p := range d.live {
		if key := (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}); !is[key] {
			d.recent[key] = removed{p, now}
		}
	}
	d.live = live
}

// isolateAll returns a policy that isolates all pods of the namespace and allows nothing.
func isolateAll(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unknownPolicy},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		},
	}
}
