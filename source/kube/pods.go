package kube

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/objects"
)

type pods struct {
	known   map[policy.Name]*policy.Pod
	in      map[string]int // the number of pods by namespace
	common  *pools
	apiUIDs map[policy.Name]string
	lost    map[policy.Name]bool
}

// podItem is the part of a pod that policy needs.
type podItem struct {
	*policy.Pod
	apiUID   string // of a static pod; empty otherwise
	lost     bool   // Addresses are those that the status had before
	problems []ruleset.Problem
}

func newPods() pods {
	return pods{
		known: map[policy.Name]*policy.Pod{}, in: map[string]int{}, common: newPools(),
		apiUIDs: map[policy.Name]string{}, lost: map[policy.Name]bool{},
	}
}

func (c *cluster) readPod(o *corev1.Pod) podItem {
	var i podItem
	if o.Annotations[corev1.MirrorPodAnnotationKey] != "" {
		i.apiUID = string(o.UID)
	}
	name := nameOf(o)
	was := c.pods.known[name]
	if was != nil && objects.IsPod(was, o) {
		i.Pod = was
		return i
	}
	var now policy.Pod
	now, i.problems = objects.Pod(o)
	if was != nil && keepsAddresses(was, &now) {
		now.Addresses, i.lost = was.Addresses, true
	}
	c.pods.common.share(&now)
	if was != nil { // keeps the equal strings of the pod before, which are also in the key of known
		now.Name = was.Name
		if now.UID == was.UID {
			now.UID = was.UID
		}
	}
	i.Pod = &now
	return i
}

// keepsAddresses reports whether a running pod keeps addresses that its status has lost. Kubelet removes
// addresses that it doesn't know yet.
func keepsAddresses(was, now *policy.Pod) bool {
	return len(now.Addresses) == 0 && len(was.Addresses) > 0 && now.UID == was.UID && !now.Finished
}

func (c *cluster) putPod(name policy.Name, i podItem) {
	set(c.pods.apiUIDs, name, i.apiUID)
	set(c.pods.lost, name, i.lost)
	c.setProblems("Pod", name, i.problems)
	was := c.pods.known[name]
	if i.Pod == was || was != nil && reflect.DeepEqual(was, i.Pod) {
		return
	}
	c.pods.common.use(i.Pod)
	name = policy.Name{Namespace: i.Namespace, Name: i.Name} // the pod's own strings, so that the key keeps no others
	c.pods.known[name] = i.Pod
	if c.pending != nil {
		c.pending.Pods[name] = []*policy.Pod{i.Pod}
	}
	if was != nil {
		c.pods.common.release(was)
		return
	}
	if c.pods.in[i.Namespace]++; c.pods.in[i.Namespace] == 1 {
		c.checkDeparture(i.Namespace)
	}
}

func (c *cluster) removePod(name policy.Name) {
	was := c.pods.known[name]
	if was == nil {
		return
	}
	delete(c.pods.known, name)
	delete(c.pods.apiUIDs, name)
	delete(c.pods.lost, name)
	c.setProblems("Pod", name, nil)
	c.pods.common.release(was)
	if c.pending != nil {
		c.pending.Pods[name] = nil
	}
	if c.pods.in[name.Namespace]--; c.pods.in[name.Namespace] == 0 {
		delete(c.pods.in, name.Namespace)
		c.checkDeparture(name.Namespace)
	}
}

func (c *cluster) pod(name policy.Name) (i podItem, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pods.known[name]
	return podItem{Pod: p, apiUID: c.pods.apiUIDs[name], lost: c.pods.lost[name]}, p != nil
}

func set[K comparable, V comparable](m map[K]V, key K, v V) {
	var zero V
	if v == zero {
		delete(m, key)
		return
	}
	m[key] = v
}
