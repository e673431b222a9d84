package kube

import (
	"maps"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/policy"
)

// maxWatchLag is how far the watch on namespaces may lag behind the watch on policies. Deleted policies are remembered
// for this time, because the deletion of their namespace may be reported later.
const maxWatchLag = time.Minute

// unknownPolicy is the name of a made-up policy, which stands for the unknown policies of a namespace that is being
// deleted. No object in Kubernetes can have this name.
const unknownPolicy = "(unknown: the namespace is being deleted)"

// departing keeps the policies of namespaces that are being deleted. Kubernetes before 1.33 may delete a policy while
// the pods that the policy isolates still run (CVE-2024-7598). So a kept policy stays in force until the namespace and
// its pods are gone.
//
// An agent that starts during the deletion can't know the policies that were deleted before. It isolates all pods of
// such a namespace, in both directions. It does the same if a namespace's deletion is reported within maxWatchLag after
// the agent's start.
type departing struct {
	namespaces map[string]*departure
	// recent has policies that were deleted within maxWatchLag, by namespace and name.
	recent  map[string]map[string]removal
	expiry  []removal // in the order of deletion; some of these policies may no longer be in recent
	started time.Time // when the first delta was returned; zero until then
}

type departure struct {
	uid  types.UID
	gone bool // the Namespace object is gone, but its pods may still run
	kept map[string]*networkingv1.NetworkPolicy
}

type removal struct {
	policy *networkingv1.NetworkPolicy
	at     time.Time
}

func newDeparting() *departing {
	return &departing{namespaces: map[string]*departure{}, recent: map[string]map[string]removal{}}
}

func (d *departing) see(name string, uid types.UID, deleting bool, now time.Time) (
	back, over []*networkingv1.NetworkPolicy,
) {
	known := d.namespaces[name]
	if known != nil && known.uid != uid {
		over = slices.Collect(maps.Values(known.kept))
		delete(d.namespaces, name)
		known = nil
	}
	if known != nil || !deleting {
		return nil, over
	}
	known = &departure{uid: uid, kept: map[string]*networkingv1.NetworkPolicy{}}
	d.namespaces[name] = known
	if d.started.IsZero() || now.Sub(d.started) < maxWatchLag {
		known.kept[unknownPolicy] = isolateAll(name)
	}
	d.expire(now)
	for _, r := range d.recent[name] {
		known.kept[r.policy.Name] = r.policy
	}
	delete(d.recent, name)
	return slices.Collect(maps.Values(known.kept)), over
}

func (d *departing) lose(name string) {
	if known := d.namespaces[name]; known != nil {
		known.gone = true
	}
}

func (d *departing) end(name string, inhabited bool) (over []*networkingv1.NetworkPolicy) {
	known := d.namespaces[name]
	if known == nil || !known.gone || inhabited {
		return nil
	}
	delete(d.namespaces, name)
	return slices.Collect(maps.Values(known.kept))
}

func (d *departing) removed(p *networkingv1.NetworkPolicy, now time.Time) (kept bool) {
	if known := d.namespaces[p.Namespace]; known != nil {
		known.kept[p.Name] = p
		return true
	}
	d.expire(now)
	if d.recent[p.Namespace] == nil {
		d.recent[p.Namespace] = map[string]removal{}
	}
	r := removal{p, now}
	d.recent[p.Namespace][p.Name] = r
	d.expiry = append(d.expiry, r)
	return false
}

func (d *departing) stored(name policy.Name) {
	if known := d.namespaces[name.Namespace]; known != nil {
		delete(known.kept, name.Name)
	}
	d.forget(name)
}

func (d *departing) expire(now time.Time) {
	for len(d.expiry) > 0 && now.Sub(d.expiry[0].at) > maxWatchLag {
		r := d.expiry[0]
		if d.expiry = d.expiry[1:]; d.recent[r.policy.Namespace][r.policy.Name] == r {
			d.forget(nameOf(r.policy))
		}
	}
}

func (d *departing) forget(name policy.Name) {
	in := d.recent[name.Namespace]
	if delete(in, name.Name); len(in) == 0 {
		delete(d.recent, name.Namespace)
	}
}

func (d *departing) kept() []*networkingv1.NetworkPolicy {
	var all []*networkingv1.NetworkPolicy
	for _, known := range d.namespaces {
		all = slices.AppendSeq(all, maps.Values(known.kept))
	}
	return all
}

func (d *departing) unknown(name string) bool {
	known := d.namespaces[name]
	return known != nil && known.kept[unknownPolicy] != nil
}

func isolateAll(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unknownPolicy},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		},
	}
}
