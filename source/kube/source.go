// Package kube is the source that watches a Kubernetes cluster: its pods, namespaces, nodes and NetworkPolicies. It
// also writes pods' addresses into their status (Publish), and makes events on this node (Announce) and its pods
// (AnnounceOnPod).
//
// Invariants:
//   - The first delta comes when all pods, namespaces, nodes and policies have been listed.
//   - While the API server doesn't answer, the known objects stay as they are.
//   - While a namespace is being deleted, its policies stay in force until its pods are gone. If an agent starts during
//     the deletion, it isolates all pods of the namespace.
//   - The package writes nothing but addresses and events. A patch of a pod's status contains the pod's UID, so it
//     never changes another pod of the same name.
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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/objects"
)

// Source watches an API server, and writes to it. The exported fields must be set before Run.
type Source struct {
	Client kubernetes.Interface
	Log    *slog.Logger
	// Node is the name of the agent's node. Announce makes its events on this Node, and each event on a pod names the
	// node.
	Node string

	unenforced atomic.Pointer[[]policy.Unenforced]

	contact    contact
	published  published
	eventNames map[string]string // the name of the event on a pod, by the event's key (PodEvent.Key)
	announcing sync.Once
	recorder   record.EventRecorder
}

// Run watches until ctx ends. It passes the first delta to the function update when all objects have been listed, and
// further deltas after changes. While the API server doesn't answer, Run goes on trying, and Contact returns the error.
func (s *Source) Run(ctx context.Context, update func(*policy.Delta, error)) error {
	c := newCluster()
	s.published.mu.Lock()
	s.published.cluster = c
	s.published.mu.Unlock()
	c.mirrors.pods.after = func(changed *policy.Name) {
		if changed != nil {
			s.see(ctx, *changed)
		} else {
			s.seeAll(ctx)
		}
		c.wakeUp()
	}
	core, networking := s.Client.CoreV1(), s.Client.NetworkingV1()
	pods, namespaces, nodes := core.Pods(metav1.NamespaceAll), core.Namespaces(), core.Nodes()
	policies := networking.NetworkPolicies(metav1.NamespaceAll)
	m := &c.mirrors
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { m.pods.follow(ctx, s, &corev1.Pod{}, lister(pods.List), pods.Watch) })
	following.Go(func() {
		m.namespaces.follow(ctx, s, &corev1.Namespace{}, lister(namespaces.List), namespaces.Watch)
	})
	following.Go(func() { m.nodes.follow(ctx, s, &corev1.Node{}, lister(nodes.List), nodes.Watch) })
	following.Go(func() {
		m.policies.follow(ctx, s, &networkingv1.NetworkPolicy{}, lister(policies.List), policies.Watch)
	})
	expiry := time.NewTicker(maxWatchLag)
	defer expiry.Stop()
	surveyed := make(chan struct{}, 1)
	var unenforced []policy.Unenforced // the value in the last delta
	for begun := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-expiry.C:
			c.expire()
			continue
		case <-surveyed:
		case <-c.wake:
		}
		d := c.nextDelta()
		if u := s.unenforced.Load(); u != nil && !slices.Equal(*u, unenforced) {
			d.Unenforced, unenforced = u, *u
		}
		if begun && d.Empty() {
			continue
		}
		update(d, nil)
		if !begun {
			begun = true
			go s.survey(ctx, func() {
				select {
				case surveyed <- struct{}{}:
				default:
				}
			})
		}
	}
}

const requestTimeout = 5 * time.Second

// Lookup asks the API server for the pod with p's namespace and name. It ignores p's UID. ok is false if there is no
// such pod.
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
	pod, _ = objects.Pod(got) // problems are ignored here: the watch reports them too
	return pod, true, nil
}
