package kube

import (
	"net/netip"
	"reflect"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/hashed"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/objects"
)

type pods struct {
	known   hashed.Map[policy.Name, policy.Pod]
	in      map[string]int // the number of pods in each namespace
	common  *pools
	apiUIDs map[policy.Name]string
	lost    map[policy.Name]bool
}

// podItem has the parts of a pod that the source stores.
type podItem struct {
	*policy.Pod
	apiUID   string // the UID in the API, if the pod is static: in the runtime, a static pod has another UID
	lost     bool   // true if the pod's status has no addresses any more, and Addresses has the earlier addresses
	problems []ruleset.Problem
}

func newPods() pods {
	return pods{
		known: hashed.New(podName), in: map[string]int{}, common: newPools(),
		apiUIDs: map[policy.Name]string{}, lost: map[policy.Name]bool{},
	}
}

func podName(p *policy.Pod) policy.Name { return policy.Name{Namespace: p.Namespace, Name: p.Name} }

func (p *pods) names(yield func(policy.Name) bool) {
	for name := range p.known.All() {
		if !yield(name) {
			return
		}
	}
}

func (c *cluster) readPod(o *corev1.Pod) podItem {
	var i podItem
	if o.Annotations[corev1.MirrorPodAnnotationKey] != "" {
		i.apiUID = string(o.UID)
	}
	name := nameOf(o)
	was := c.pods.known.Get(name)
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
	if was != nil && now.UID == was.UID {
		now.Name, now.UID = was.Name, was.UID
	} else {
		both := now.Name + now.UID
		now.Name, now.UID = both[:len(now.Name)], both[len(now.Name):]
	}
	i.Pod = pack(now)
	return i
}

// pack copies the pod and one or two addresses into one block of memory. Garbage collection visits every block, so it
// takes less time with fewer blocks.
func pack(p policy.Pod) *policy.Pod {
	switch len(p.Addresses) {
	case 1:
		all := &struct {
			policy.Pod
			addresses [1]netip.Addr
		}{Pod: p}
		all.addresses[0] = p.Addresses[0]
		all.Addresses = all.addresses[:]
		return &all.Pod
	case len(conf.Families):
		all := &struct {
			policy.Pod
			addresses [len(conf.Families)]netip.Addr
		}{Pod: p}
		copy(all.addresses[:], p.Addresses)
		all.Addresses = all.addresses[:]
		return &all.Pod
	}
	return &p
}

// keepsAddresses reports whether the pod keeps its earlier addresses although its status has none now. Kubelet may
// remove addresses from the status of a running pod, because kubelet doesn't know the addresses yet.
func keepsAddresses(was, now *policy.Pod) bool {
	return len(now.Addresses) == 0 && len(was.Addresses) > 0 && now.UID == was.UID && !now.Finished
}

func (c *cluster) putPod(name policy.Name, i podItem) {
	set(c.pods.apiUIDs, name, i.apiUID)
	set(c.pods.lost, name, i.lost)
	c.setProblems("Pod", name, i.problems)
	was := c.pods.known.Get(name)
	if i.Pod == was || was != nil && reflect.DeepEqual(was, i.Pod) {
		return
	}
	c.pods.common.use(i.Pod)
	name = podName(i.Pod) // a name from the stored pod, so that a delta keeps no other strings in memory
	c.pods.known.Put(i.Pod)
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
	was := c.pods.known.Get(name)
	if was == nil {
		return
	}
	c.pods.known.Delete(name)
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
	p := c.pods.known.Get(name)
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
