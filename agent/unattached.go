package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
)

// unattachedAfter is how long a pod of this node must have addresses and no record before the agent reports the pod. A
// pod that ends is in this state for a moment. After the node's start, all pods are in this state until kubelet has
// restarted them.
const unattachedAfter = time.Minute

// unattached finds pods of this node that have addresses but no record. Either weir has not attached the pods, and no
// policy is enforced on them: the runtime may have used another network's configuration, or the pods are older than
// weir. Or the pods' records were lost, and the pods are closed.
type unattached struct {
	pods  map[policy.Name]string    // the UIDs of this node's pods that have addresses in their status
	since map[policy.Name]time.Time // when the agent first saw the pod without a record
}

func newUnattached() unattached {
	return unattached{pods: map[policy.Name]string{}, since: map[policy.Name]time.Time{}}
}

func (u *unattached) take(node string, changed map[policy.Name][]*policy.Pod) {
	for name, pods := range changed {
		delete(u.pods, name)
		for _, p := range pods {
			if p.NodeName == node && len(p.Addresses) > 0 && !p.HostNetwork && !p.Finished {
				u.pods[name] = p.UID
			}
		}
	}
}

// look returns the names of the pods that have had no record for unattachedAfter.
func (u *unattached) look(records map[string]endpoint.Endpoint, now time.Time) (names []string) {
	without := maps.Clone(u.pods)
	for _, e := range records {
		name := policy.Name{Namespace: e.Pod.Namespace, Name: e.Pod.Name}
		if uid, ok := without[name]; ok && policy.SameUID(uid, e.Pod.UID) {
			delete(without, name)
		}
	}
	maps.DeleteFunc(u.since, func(name policy.Name, _ time.Time) bool { _, ok := without[name]; return !ok })
	for name := range without {
		if u.since[name].IsZero() {
			u.since[name] = now
		}
		if now.Sub(u.since[name]) >= unattachedAfter {
			names = append(names, name.Namespace+"/"+name.Name)
		}
	}
	slices.Sort(names)
	return names
}

// lookForUnattached reports pods that have had no record for unattachedAfter, although weir should have attached them.
// It reports none if weir isn't the network of all pods, or if the source doesn't know the present state of pods.
// While a record can't be read, the last report stays, because the record may belong to a reported pod.
func (r *round) lookForUnattached(context.Context) bool {
	_, live := r.Source.(Publisher)
	unknown := r.records.stale || r.records.ending || len(r.records.broken) > 0
	if !live || r.Node.Conflist == "" || r.verify != netfilter.All || unknown {
		return true
	}
	var err error
	if names := r.cluster.unattached.look(r.records.endpoints, time.Now()); len(names) > 0 {
		err = fmt.Errorf("weir has no endpoint record of %s: either another network has attached them, and no policy is "+
			"enforced on them; or their records were lost, and they are closed; delete them, and weir attaches the pods "+
			"that replace them", excerpt.List(names, ", "))
	}
	r.faults.set(partUnattached, err)
	return true
}
