// Package kube is the source that watches a Kubernetes cluster: its pods, namespaces, nodes and NetworkPolicies. It
// keeps only what policy needs of them. It also writes to the API server:
//
//   - pods' addresses into their status (Publish)
//   - events about this node (Announce)
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/objects"
)

// Source watches the API server.
type Source struct {
	Client kubernetes.Interface
	Log    *slog.Logger
	// Node is the name of this node's Node.
	Node string

	// unenforced has the policies of other kinds; nil before the first survey.
	unenforced atomic.Pointer[[]policy.Unenforced]

	contact    contact
	published  published
	announcing sync.Once
	recorder   record.EventRecorder
}

// views has what policy needs of all objects.
type views struct {
	pods       *view[*corev1.Pod, policy.Pod]
	namespaces *view[*corev1.Namespace, policy.Namespace]
	nodes      *view[*corev1.Node, policy.Node]
	policies   *view[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]
	departing  *departing
}

func newViews() views {
	v := views{
		departing: newDeparting(),
		pods:      newView(objects.Pod),
		namespaces: newView(func(n *corev1.Namespace) (policy.Namespace, []ruleset.Problem) {
			return objects.Namespace(n), nil
		}),
		nodes: newView(objects.Node),
		policies: newView(func(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, []ruleset.Problem) {
			meta := metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}
			return &networkingv1.NetworkPolicy{ObjectMeta: meta, Spec: p.Spec}, nil
		}),
	}
	v.pods.merge = keepAddresses
	return v
}

// keepAddresses keeps a pod's addresses if its status loses them while it runs. Kubelet removes addresses that it
// doesn't know yet, such as those that the pod's own node has just published. If another pod has such an address by
// then, packets from the address are allowed only if the policies allow both pods.
func keepAddresses(was, now policy.Pod) policy.Pod {
	if len(now.Addresses) == 0 && now.UID == was.UID && !now.Finished {
		now.Addresses = was.Addresses
	}
	return now
}

// objects returns the objects as they are now. It uses the parts of an object that can be read, and reports the parts
// that can't.
func (v views) objects() *policy.Objects {
	var o policy.Objects
	var ofPods, ofNodes []ruleset.Problem
	o.Pods, ofPods = v.pods.all()
	o.Nodes, ofNodes = v.nodes.all()
	o.Namespaces, _ = v.namespaces.all()
	live, _ := v.policies.all()
	inhabited := func(namespace string) bool {
		return slices.ContainsFunc(o.Pods, func(p policy.Pod) bool { return p.Namespace == namespace })
	}
	var ofNamespaces []ruleset.Problem
	o.Policies, ofNamespaces = v.departing.policies(time.Now(), live, inhabited)
	o.Problems = slices.Concat(ofPods, ofNodes, ofNamespaces)
	return &o
}

// Run watches until ctx ends. It calls update with the first delta when all watches have synced, and then after each
// change; one call may be for several changes. While the API server doesn't answer, Run doesn't call update, and
// Contact returns the error. The watches resume by themselves.
func (s *Source) Run(ctx context.Context, update func(*policy.Delta, error)) error {
	factory := informers.NewSharedInformerFactory(s.Client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	nodes := factory.Core().V1().Nodes().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	v, changed := newViews(), make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // a notification is waiting already
		}
	}
	var all []cache.InformerSynced
	for _, i := range []struct {
		informer cache.SharedIndexInformer
		keep     cache.TransformFunc
		watch    func(cache.SharedInformer, func()) (cache.InformerSynced, error)
	}{
		{pods, keepPod, v.pods.watch},
		{namespaces, keepNamespace, v.namespaces.watch},
		{namespaces, keepNamespace, v.departing.watch},
		{nodes, keepNode, v.nodes.watch},
		{policies, keepPolicy, v.policies.watch},
	} {
		if err := i.informer.SetTransform(i.keep); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		synced, err := i.watch(i.informer, notify)
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		all = append(all, synced)
	}
	s.watchPublished(pods.GetStore())
	see := cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { s.seePod(ctx, o) }, UpdateFunc: func(_, o any) { s.seePod(ctx, o) },
	}
	if _, err := pods.AddEventHandler(see); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), all...) {
		return nil // ctx has ended
	}
	notify() // also if the cluster has no objects
	go s.survey(ctx, notify)
	var last policy.Objects
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			o := v.objects()
			if u := s.unenforced.Load(); u != nil {
				o.Unenforced = *u
			}
			update(policy.Difference(last, *o), nil)
			last = *o
		}
	}
}

// The informers' caches keep only what policy needs of each object. In a large cluster the rest would be most of the
// agent's memory.

func keepMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels,
	}
	if uid, ok := m.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		kept.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: uid}
	}
	return kept
}

func keepPod(o any) (any, error) {
	if p, ok := o.(*corev1.Pod); ok {
		return &corev1.Pod{
			ObjectMeta: keepMeta(p.ObjectMeta),
			Spec: corev1.PodSpec{
				NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, Containers: keepPorts(p.Spec),
			},
			Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
		}, nil
	}
	return o, nil // a tombstone
}

// keepPorts returns the containers with their named ports, and nothing else.
func keepPorts(spec corev1.PodSpec) []corev1.Container {
	var kept []corev1.Container
	for _, c := range objects.PortContainers(spec) {
		named := slices.DeleteFunc(slices.Clone(c.Ports), func(p corev1.ContainerPort) bool { return p.Name == "" })
		if len(named) > 0 {
			kept = append(kept, corev1.Container{Name: c.Name, Ports: named})
		}
	}
	return kept
}

func keepNamespace(o any) (any, error) {
	if n, ok := o.(*corev1.Namespace); ok {
		kept := &corev1.Namespace{ObjectMeta: keepMeta(n.ObjectMeta)}
		kept.DeletionTimestamp = n.DeletionTimestamp
		return kept, nil
	}
	return o, nil
}

func keepNode(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		meta := keepMeta(n.ObjectMeta)
		meta.CreationTimestamp = n.CreationTimestamp
		return &corev1.Node{
			ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
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

// requestTimeout bounds a single request to the API server.
const requestTimeout = 5 * time.Second

// Lookup asks the API server for one pod, without the watch. It returns false if there is no such pod.
func (s *Source) Lookup(ctx context.Context, p endpoint.Pod) (pod policy.Pod, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	got, err := s.Client.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return policy.Pod{}, false, nil
	}
	if err != nil {
		return policy.Pod{}, false, fmt.Errorf("ask for pod %s: %w", p, err)
	}
	pod, _ = objects.Pod(got) // the watch reports the problems
	return pod, true, nil
}
