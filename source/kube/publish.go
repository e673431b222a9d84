package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/source/objects"
)

// published is what others are told of this node's pods, and where it is seen what they were told.
type published struct {
	mu        sync.Mutex
	addresses map[endpoint.Pod][]netip.Addr
	pods      cache.Store                    // nil until Run
	told      map[endpoint.Pod]chan struct{} // closed once others can know of the pod
}

// done is the channel of the pod. The caller holds the lock.
func (p *published) done(pod endpoint.Pod) chan struct{} {
	if p.told == nil {
		p.told = map[endpoint.Pod]chan struct{}{}
	}
	if p.told[pod] == nil {
		p.told[pod] = make(chan struct{})
	}
	return p.told[pod]
}

// tell lets those go on who wait for the pod. The caller holds the lock.
func (p *published) tell(pod endpoint.Pod) {
	select {
	case <-p.done(pod):
	default:
		close(p.told[pod])
	}
}

// AwaitPublished returns when the API server has the addresses of a pod that Publish was, or is about to be, called with; or
// won't have them, or ctx ends.
func (s *Source) AwaitPublished(ctx context.Context, pod endpoint.Pod) {
	s.published.mu.Lock()
	done := s.published.done(pod)
	s.published.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Publish has the pods' addresses written into their status, where kubelet would write them seconds later: agents on
// other nodes then know a pod before its first packet comes. The status is used because nobody who may only make pods can
// write it, as they could an annotation. Kubelet takes the addresses away again whenever it compares the status with
// its own, every ten seconds or so, until the pod's first container has started; they are written again as soon as that
// is seen. Pods without UID are left to kubelet: they could be a namesake by now.
//
// It doesn't wait, and pods of an earlier call that aren't in this one are forgotten.
func (s *Source) Publish(ctx context.Context, pods map[endpoint.Pod][]netip.Addr) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	before := s.published.addresses
	s.published.addresses = pods
	maps.DeleteFunc(s.published.told, func(p endpoint.Pod, _ chan struct{}) bool { _, ok := pods[p]; return !ok })
	if s.published.pods == nil {
		return
	}
	for p, addrs := range pods {
		if slices.Equal(before[p], addrs) {
			continue
		}
		// One that isn't known yet is written when the watch tells of it.
		if o, ok, err := s.published.pods.GetByKey(p.String()); ok && err == nil {
			s.write(ctx, o)
		}
	}
}

// watchPublished is called once, with what the watch knows; seePod with each state that it tells of a pod.
func (s *Source) watchPublished(pods cache.Store) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	s.published.pods = pods
}

func (s *Source) seePod(ctx context.Context, o any) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	s.write(ctx, o)
}

// write starts to write what the pod lacks of its addresses. That it fails costs only time: kubelet writes them too.
func (s *Source) write(ctx context.Context, o any) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	known, _ := objects.Pod(pod)
	if known.UID == "" || known.Finished {
		return
	}
	key := endpoint.Pod{Namespace: known.Namespace, Name: known.Name, UID: known.UID}
	addrs, ok := s.published.addresses[key]
	if !ok {
		return
	}
	if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(known.Addresses, a) }) {
		s.published.tell(key)
		return
	}
	go func() {
		if err := s.patch(ctx, pod, addrs); err != nil {
			s.Log.Warn("other nodes hear of a pod's address from kubelet only", "pod", pod.Namespace+"/"+pod.Name, "error", err)
		}
		s.published.mu.Lock()
		defer s.published.mu.Unlock()
		if _, ok := s.published.addresses[key]; ok {
			s.published.tell(key)
		}
	}()
}

// patch writes the addresses. The object's own UID, which for a static pod isn't the one that the runtime knows, makes
// sure that no namesake gets them.
//
// Equivalent to: kubectl patch pod NAME --subresource=status --type=merge -p '{"metadata": {"uid": …}, "status": {"podIPs": …}}'
func (s *Source) patch(ctx context.Context, pod *corev1.Pod, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ips := make([]corev1.PodIP, len(addrs))
	for i, a := range addrs {
		ips[i] = corev1.PodIP{IP: a.String()}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status":   map[string]any{"podIP": ips[0].IP, "podIPs": ips},
	})
	if err != nil {
		return fmt.Errorf("publish the addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	_, err = s.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	// Another UID is a conflict, or invalid because a UID can't be changed. Either way the pod isn't this one any more.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
		return fmt.Errorf("publish the addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
