// Package kube owns the source that is a Kubernetes cluster: watches on pods, namespaces, nodes and NetworkPolicies,
// of which it keeps what policy needs and no more.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/objects"
)

// Source watches the API server.
type Source struct {
	Client kubernetes.Interface
	Log    *slog.Logger
}

// Run watches until ctx ends. update gets the first state when all watches have synced, and then one for each change, or
// several that have come by then. While the API server is away nothing is told, and the watches come back by
// themselves.
func (s *Source) Run(ctx context.Context, update func(*policy.Objects, error)) error {
	factory := informers.NewSharedInformerFactory(s.Client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	nodes := factory.Core().V1().Nodes().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // it will be looked at anyway
		}
	}
	for _, i := range []struct {
		cache.SharedIndexInformer
		keep cache.TransformFunc
	}{{pods, keepPod}, {namespaces, keepNamespace}, {nodes, keepNode}, {policies, keepPolicy}} {
		if err := i.SetTransform(i.keep); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		handler := cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
		}
		if _, err := i.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok && ctx.Err() == nil {
			return fmt.Errorf("watch %v: never synced", kind)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			update(collect(pods.GetStore(), namespaces.GetStore(), nodes.GetStore(), policies.GetStore()))
		}
	}
}

// collect reads the caches. An object of which something can't be read is used as far as it can, and reported.
func collect(pods, namespaces, nodes, policies cache.Store) (*policy.Objects, error) {
	var all policy.Objects
	var errs []error
	for _, o := range pods.List() {
		pod := o.(*corev1.Pod)
		p, err := objects.Pod(pod)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
		all.Pods = append(all.Pods, p)
	}
	for _, o := range namespaces.List() {
		all.Namespaces = append(all.Namespaces, objects.Namespace(o.(*corev1.Namespace)))
	}
	for _, o := range nodes.List() {
		node := o.(*corev1.Node)
		n, err := objects.Node(node)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", node.Name, err))
		}
		all.Nodes = append(all.Nodes, n)
	}
	for _, o := range policies.List() {
		all.Policies = append(all.Policies, o.(*networkingv1.NetworkPolicy))
	}
	return &all, errors.Join(errs...)
}

// The caches keep of each object what policy needs: in a large cluster the rest is most of the agent's memory.

func keepMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels}
	if uid, ok := m.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		kept.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: uid}
	}
	return kept
}

func keepPod(o any) (any, error) {
	if p, ok := o.(*corev1.Pod); ok {
		return &corev1.Pod{
			ObjectMeta: keepMeta(p.ObjectMeta), Spec: corev1.PodSpec{HostNetwork: p.Spec.HostNetwork},
			Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
		}, nil
	}
	return o, nil // a tombstone
}

func keepNamespace(o any) (any, error) {
	if n, ok := o.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: keepMeta(n.ObjectMeta)}, nil
	}
	return o, nil
}

func keepNode(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		return &corev1.Node{
			ObjectMeta: keepMeta(n.ObjectMeta), Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
			Status: corev1.NodeStatus{Addresses: n.Status.Addresses},
		}, nil
	}
	return o, nil
}

func keepPolicy(o any) (any, error) {
	if p, ok := o.(*networkingv1.NetworkPolicy); ok {
		return &networkingv1.NetworkPolicy{ObjectMeta: keepMeta(p.ObjectMeta), Spec: p.Spec}, nil
	}
	return o, nil
}

// lookupTimeout bounds a single question to the API server.
const lookupTimeout = 5 * time.Second

// Lookup asks the API server for one pod, past the watch; ok is false if there is none.
func (s *Source) Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	got, err := s.Client.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return policy.Pod{}, false, nil
	}
	if err != nil {
		return policy.Pod{}, false, fmt.Errorf("ask for pod %s: %w", p, err)
	}
	pod, err = objects.Pod(got)
	return pod, err == nil, err
}

// Publish writes the pod's addresses into its status, where kubelet would write them seconds later: agents on other nodes
// then know the pod before its first packet comes. The status is used because nobody who may only make pods can write
// it, as they could an annotation. uid makes sure that no namesake is meant.
func (s *Source) Publish(ctx context.Context, p endpoint.Pod, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips := make([]corev1.PodIP, len(addrs))
	for i, a := range addrs {
		ips[i] = corev1.PodIP{IP: a.String()}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status":   map[string]any{"podIP": ips[0].IP, "podIPs": ips},
	})
	if err != nil {
		return fmt.Errorf("publish the addresses of pod %s: %w", p, err)
	}
	_, err = s.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("publish the addresses of pod %s: %w", p, err)
	}
	return nil
}
