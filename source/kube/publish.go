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

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

type published struct {
	mu        sync.Mutex
	addresses map[endpoint.Pod][]netip.Addr
	cluster   *cluster                       // the pods that the watch has reported; nil until Run
	done      map[endpoint.Pod]chan struct{} // closed when writing the pod's addresses has succeeded or failed
}

func (p *published) doneChannel(pod endpoint.Pod) chan struct{} {
	if p.done == nil {
		p.done = map[endpoint.Pod]chan struct{}{}
	}
	if p.done[pod] == nil {
		p.done[pod] = make(chan struct{})
	}
	return p.done[pod]
}

func (p *published) markDone(pod endpoint.Pod) {
	select {
	case <-p.doneChannel(pod):
	default:
		close(p.done[pod])
	}
}

// AwaitPublished waits until the API server has the pod's addresses, until writing them has failed, or until ctx ends.
// The caller must also pass the pod to Publish: otherwise AwaitPublished always waits until ctx ends.
func (s *Source) AwaitPublished(ctx context.Context, pod endpoint.Pod) {
	s.published.mu.Lock()
	done := s.published.doneChannel(pod)
	s.published.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Publish writes the addresses of this node's pods into the pods' status, seconds before kubelet does. So agents on
// other nodes know a pod before its first packet arrives. Publish doesn't wait for the API server. The parameter pods
// must have all pods to publish: Publish forgets all other pods.
//
//   - The addresses are in the status and not in an annotation: users who may create pods could forge an annotation.
//   - Kubelet removes the addresses about every ten seconds until the pod's first container has started. The source
//     writes them again at once.
//   - The source doesn't write the addresses of a pod without a UID: a newer pod may have the same name.
func (s *Source) Publish(ctx context.Context, pods map[endpoint.Pod][]netip.Addr) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	before := s.published.addresses
	s.published.addresses = pods
	maps.DeleteFunc(s.published.done, func(p endpoint.Pod, _ chan struct{}) bool { _, ok := pods[p]; return !ok })
	for p, addrs := range pods {
		if !slices.Equal(before[p], addrs) {
			s.write(ctx, p)
		}
	}
}

// see writes the published addresses of the pod again if its status lacks one of them. It is called for each event of
// every pod, so it must be cheap for pods that aren't published.
func (s *Source) see(ctx context.Context, name policy.Name) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	if len(s.published.addresses) == 0 {
		return
	}
	if known, ok := s.published.cluster.pod(name); ok {
		s.write(ctx, endpoint.Pod{Namespace: name.Namespace, Name: name.Name, UID: known.UID})
	}
}

func (s *Source) seeAll(ctx context.Context) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	for p := range s.published.addresses {
		s.write(ctx, p)
	}
}

// write starts to write the pod's addresses if the pod's status lacks one of them. After a failure it doesn't try
// again: kubelet writes the addresses some seconds later. The caller must have the lock s.published.mu.
func (s *Source) write(ctx context.Context, p endpoint.Pod) {
	addrs, ok := s.published.addresses[p]
	if !ok || p.UID == "" || s.published.cluster == nil {
		return
	}
	name := policy.Name{Namespace: p.Namespace, Name: p.Name}
	known, ok := s.published.cluster.pod(name)
	if !ok || known.UID != p.UID || known.Finished {
		return
	}
	has := func(a netip.Addr) bool { return !known.lost && slices.Contains(known.Addresses, a) }
	if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !has(a) }) {
		s.published.markDone(p)
		return
	}
	uid := p.UID
	if known.apiUID != "" {
		uid = known.apiUID
	}
	go func() {
		if err := s.patch(ctx, name, uid, addrs); err != nil {
			s.Log.Warn("other nodes hear of a pod's address from kubelet only", "pod", p.String(), "error", err)
		}
		s.published.mu.Lock()
		defer s.published.mu.Unlock()
		if _, ok := s.published.addresses[p]; ok {
			s.published.markDone(p)
		}
	}()
}

// patch writes the addresses into the pod's status. It returns no error if the pod is gone. The patch contains the UID,
// so another pod of the same name doesn't get the addresses.
//
// Equivalent to:
//
//	kubectl patch pod NAME --namespace NAMESPACE --subresource=status --type=merge \
//	  -p '{"metadata": {"uid": …}, "status": {"podIP": …, "podIPs": …}}'
func (s *Source) patch(ctx context.Context, pod policy.Name, uid string, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ips := make([]corev1.PodIP, len(addrs))
	for i, a := range addrs {
		ips[i] = corev1.PodIP{IP: a.String()}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": uid},
		"status":   map[string]any{"podIP": ips[0].IP, "podIPs": ips},
	})
	if err != nil {
		return fmt.Errorf("publish the addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	pods := s.Client.CoreV1().Pods(pod.Namespace)
	_, err = pods.Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	// The API server answers Conflict or Invalid if the pod now has another UID: the pod with the old UID is gone.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
		return fmt.Errorf("publish the addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
