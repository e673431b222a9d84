package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
)

// Lookup is a Source that can be asked for one pod.
type Lookup interface {
	Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error)
}

// found is an endpoint's pod that the source was asked for, because it had not told of it.
type found struct {
	pod      policy.Pod
	namesake policy.Pod // as the source had told of it when it was asked
}

// lookup asks for the pod of an endpoint, in which a plugin waits, that the source hasn't told of.
func (a *agent) lookup(ctx context.Context, e endpoint.Endpoint) {
	source, ok := a.Source.(Lookup)
	if !ok {
		return
	}
	namesake, _ := find(a.told.Pods, e.Pod)
	go func() {
		pod, ok, err := source.Lookup(ctx, e.Pod)
		if err != nil {
			a.Log.Warn("a new pod isn't known yet, and the API server can't be asked", "pod", e.Pod.String(), "error", err)
		}
		if !ok || !policy.SameUID(pod.UID, e.Pod.UID) {
			return
		}
		a.hand(ctx, func() iptables.Verify {
			a.found[e.ID()] = found{pod, namesake}
			a.join()
			return iptables.Trust
		})
	}()
}

// join puts the pods that were found beside those that the source has told of: what it tells next may still be older
// than the answer. They are forgotten with their endpoint, or once the source tells of another pod of the name than when
// it was asked, be it this one or one that came after it.
func (a *agent) join() {
	if a.told == nil {
		return
	}
	maps.DeleteFunc(a.found, func(id string, f found) bool {
		e, ok := a.endpoints[id]
		if !ok {
			return true
		}
		p, _ := find(a.told.Pods, e.Pod)
		return p.Name != "" && p.UID != f.namesake.UID
	})
	joined := *a.told
	if len(a.found) > 0 {
		joined.Pods = slices.Clone(joined.Pods)
	}
	for _, id := range slices.Sorted(maps.Keys(a.found)) {
		pod := a.found[id].pod
		namesake := func(p policy.Pod) bool { return p.Namespace == pod.Namespace && p.Name == pod.Name }
		joined.Pods = append(slices.DeleteFunc(joined.Pods, namesake), pod)
	}
	a.objects = &joined
}

// madeBy are the pods that the endpoint's may be, if the source knows no pod of the name but workloads that make such.
func (a *agent) madeBy(e endpoint.Endpoint) []policy.Pod {
	if p, _ := find(a.objects.Pods, e.Pod); p.Name != "" {
		return nil
	}
	made, _ := policy.MadeBy(a.objects.Workloads, e.Pod.Namespace, e.Pod.Name)
	return made
}

// find returns the pod of the name, and whether it is the one with that UID.
func find(pods []policy.Pod, p endpoint.Pod) (policy.Pod, bool) {
	i := slices.IndexFunc(pods, func(o policy.Pod) bool { return o.Namespace == p.Namespace && o.Name == p.Name })
	if i < 0 {
		return policy.Pod{}, false
	}
	return pods[i], policy.SameUID(pods[i].UID, p.UID)
}
