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

// watchesDiffer is how much later the watch on namespaces may tell that a namespace is being deleted than the watch on
// policies tells that one of its policies is gone.
const watchesDiffer = time.Minute

// unknownPolicies is the name of the policy that stands for those which nobody can tell of any more. No object can have
// it.
const unknownPolicies = "(unknown: the namespace is being deleted)"

// departing holds the policies of namespaces that are being deleted. Kubernetes before 1.33 deletes what is in such a
// namespace in no order, so a policy may go while the pods that it isolates still run (CVE-2024-7598, KEP-5080). A held
// policy stays in force until the namespace and its pods are gone.
//
// An agent that starts in that moment doesn't know which policies there were. It isolates all pods of the namespace, in
// both directions, so they get only the traffic that the remaining policies allow. Policies only add to each other, so
// that is never more than all of them together allowed.
type departing struct {
	mu         sync.Mutex
	namespaces map[string]*departure
	// recent are policies that were deleted, by namespace and name: their namespace may turn out to be departing.
	recent map[types.NamespacedName]removed
	live   []*networkingv1.NetworkPolicy // as of the last call of policies
	began  time.Time                     // the first call of policies
}

// departure of one namespace.
type departure struct {
	uid  types.UID
	gone bool // the object; the pods may still run
	new  bool // policies wasn't called since it is known
	held map[string]*networkingv1.NetworkPolicy
}

type removed struct {
	policy *networkingv1.NetworkPolicy
	at     time.Time
}

func newDeparting() *departing {
	return &departing{namespaces: map[string]*departure{}, recent: map[types.NamespacedName]removed{}}
}

// watch follows the namespaces. The returned function says whether departing knows all that there were at the
// beginning.
func (d *departing) watch(informer cache.SharedInformer, changed func()) (cache.InformerSynced, error) {
	see := func(o any, gone bool) {
		if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tombstone.Obj
		}
		if ns, ok := o.(*corev1.Namespace); ok && d.see(ns, gone) {
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

// see takes a namespace as it is now, and says whether that changes which policies are held.
func (d *departing) see(ns *corev1.Namespace, gone bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.namespaces[ns.Name]
	if known != nil && known.uid != ns.UID { // another namespace has the name, whose pods are new
		delete(d.namespaces, ns.Name)
		known = nil
	}
	switch {
	case known != nil && gone:
		known.gone = true
		return true
	case known == nil && !gone && ns.DeletionTimestamp != nil:
		d.namespaces[ns.Name] = &departure{uid: ns.UID, new: true, held: map[string]*networkingv1.NetworkPolicy{}}
		return true
	}
	return false
}

// policies returns the live policies and the held ones. live holds the same elements for as long as no policy changes.
// inhabited says whether the namespace has pods.
func (d *departing) policies(
	now time.Time, live []*networkingv1.NetworkPolicy, inhabited func(namespace string) bool,
) ([]*networkingv1.NetworkPolicy, []ruleset.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteRemoved(now, live)
	if d.began.IsZero() {
		d.began = now
	}
	var problems []ruleset.Problem
	all := slices.Clip(live)
	for _, name := range slices.Sorted(maps.Keys(d.namespaces)) {
		departure := d.namespaces[name]
		if departure.gone && !inhabited(name) {
			delete(d.namespaces, name)
			continue
		}
		if departure.new && now.Sub(d.began) < watchesDiffer {
			departure.held[unknownPolicies] = isolateAll(name)
		}
		departure.new = false
		for key, r := range d.recent {
			if key.Namespace == name {
				departure.held[key.Name] = r.policy
				delete(d.recent, key)
			}
		}
		all = slices.AppendSeq(all, maps.Values(departure.held))
		if _, unknown := departure.held[unknownPolicies]; unknown && inhabited(name) {
			problems = append(problems, ruleset.Problem{
				Object: "Namespace " + name, Field: "metadata.deletionTimestamp",
				Message: "the namespace was being deleted as this agent started, so policies may be gone that still count; " +
					"its pods get only the traffic that the remaining policies allow",
			})
		}
	}
	return all, problems
}

// noteRemoved compares the policies with those of the last call.
func (d *departing) noteRemoved(now time.Time, live []*networkingv1.NetworkPolicy) {
	maps.DeleteFunc(d.recent, func(_ types.NamespacedName, r removed) bool { return now.Sub(r.at) > watchesDiffer })
	if len(live) == len(d.live) && (len(live) == 0 || &live[0] == &d.live[0]) {
		return // the very list of the last call
	}
	is := make(map[types.NamespacedName]bool, len(live))
	for _, p := range live {
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		is[key] = true
		delete(d.recent, key)
		if departure := d.namespaces[p.Namespace]; departure != nil {
			delete(departure.held, p.Name)
		}
	}
	for _, p := range d.live {
		if key := (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}); !is[key] {
			d.recent[key] = removed{p, now}
		}
	}
	d.live = live
}

// isolateAll is a policy that isolates every pod of the namespace and allows nothing.
func isolateAll(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unknownPolicies},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		},
	}
}
