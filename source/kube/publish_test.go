package kube

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

type publishing struct {
	*testing.T
	*fake.Clientset
	source  *Source
	patches chan patch
}

type patch struct {
	Metadata struct{ UID string }
	Status   struct {
		PodIP  string
		PodIPs []corev1.PodIP
	}
	name, subresource string
}

func publish(t *testing.T) *publishing {
	t.Helper()
	p := &publishing{T: t, Clientset: fake.NewClientset(someObjects()...), patches: make(chan patch, 100)}
	p.PrependReactor("patch", "pods", func(a ktesting.Action) (bool, runtime.Object, error) {
		got := patch{name: a.(ktesting.PatchAction).GetName(), subresource: a.GetSubresource()}
		if err := json.Unmarshal(a.(ktesting.PatchAction).GetPatch(), &got); err != nil {
			t.Error(err)
		}
		p.patches <- got
		return false, nil, nil // false: the fake client goes on, and applies the patch
	})
	watched := podsWatched(p.Clientset)
	p.source = &Source{Client: p.Clientset, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	synced, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- p.source.Run(ctx, func(*policy.Delta, error) { synced <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-synced
	<-watched
	return p
}

// podsWatched returns a channel that is closed when the client's first watch of pods has begun. Before the watch, the
// fake API server drops the events of pods, and the source may still be writing the addresses of listed pods.
func podsWatched(client *fake.Clientset) <-chan struct{} {
	watched := make(chan struct{})
	var once sync.Once
	client.PrependWatchReactor("pods", func(a ktesting.Action) (bool, watch.Interface, error) {
		defer once.Do(func() { close(watched) })
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace(), a.(ktesting.WatchActionImpl).ListOptions)
		return true, w, err
	})
	return watched
}

func (p *publishing) wantPatch(name, uid, ip string) {
	p.Helper()
	select {
	case got := <-p.patches:
		if got.name != name || got.subresource != "status" || got.Metadata.UID != uid || got.Status.PodIP != ip ||
			len(got.Status.PodIPs) != 1 || got.Status.PodIPs[0].IP != ip {
			p.Errorf("patch %+v, want pod %s, which has UID %s, to have %s in its status", got, name, uid, ip)
		}
		// Wait: the fake API server reports a patch before it applies the patch.
		for deadline := time.Now().Add(time.Minute); !p.hasIP(name, ip); {
			if time.Now().After(deadline) {
				p.Fatalf("pod %s has not got %s", name, ip)
			}
		}
	case <-time.After(time.Minute):
		p.Fatalf("nothing was written about pod %s within a minute", name)
	}
}

func (p *publishing) hasIP(name, ip string) bool {
	p.Helper()
	pods, err := p.CoreV1().Pods("").List(p.Context(), metav1.ListOptions{})
	if err != nil {
		p.Fatal(err)
	}
	return slices.ContainsFunc(pods.Items, func(o corev1.Pod) bool { return o.Name == name && o.Status.PodIP == ip })
}

// wantNone checks that the source has written nothing. It publishes the address of another pod, the pod b. If the first
// patch is for b, there was no other patch before.
func (p *publishing) wantNone() {
	p.Helper()
	p.source.Publish(p.Context(), addresses("ns-1", "b", "two", "100.96.1.99"))
	p.setIP("b", "100.96.1.9")
	p.wantPatch("b", "two", "100.96.1.99")
}

func (p *publishing) setIP(name, ip string) {
	p.Helper()
	var status corev1.PodStatus
	if ip != "" {
		status = corev1.PodStatus{PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	}
	pods := p.CoreV1().Pods("ns-1")
	pod, err := pods.Get(p.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: name, UID: "two"}, Status: status}
		_, err = pods.Create(p.Context(), pod, metav1.CreateOptions{})
	} else if err == nil {
		pod.Status = status
		_, err = pods.UpdateStatus(p.Context(), pod, metav1.UpdateOptions{})
	}
	if err != nil {
		p.Fatal(err)
	}
}

func addresses(namespace, name, uid, ip string) map[endpoint.Pod][]netip.Addr {
	return map[endpoint.Pod][]netip.Addr{{Namespace: namespace, Name: name, UID: uid}: {netip.MustParseAddr(ip)}}
}

// TestPublish: if kubelet removes a published address, the source writes the address again. The source no longer does
// this once Publish is called without the pod.
func TestPublish(t *testing.T) {
	p := publish(t)
	p.source.Publish(t.Context(), addresses("ns-1", "a", "one", "100.96.1.9"))
	p.wantPatch("a", "one", "100.96.1.9")
	for range 2 {
		p.setIP("a", "")
		p.wantPatch("a", "one", "100.96.1.9")
	}
	p.setIP("a", "100.96.1.9")
	p.source.Publish(t.Context(), addresses("ns-1", "a", "one", "100.96.1.9"))
	p.wantNone()
	p.setIP("a", "") // the pod is no longer published, so the source must not write
	p.wantNone()
}

// TestAwaitPublished: AwaitPublished returns once the API server has the address, whether the source or kubelet wrote
// it. It also returns when ctx ends.
func TestAwaitPublished(t *testing.T) {
	for name, before := range map[string]string{"to be written": "", "there already": "100.96.1.9"} {
		t.Run(name, func(t *testing.T) {
			p := publish(t)
			p.setIP("a", before)
			there := make(chan bool, 1)
			go func() {
				p.source.AwaitPublished(t.Context(), endpoint.Pod{Namespace: "ns-1", Name: "a", UID: "one"})
				there <- p.hasIP("a", "100.96.1.9")
			}()
			p.source.Publish(t.Context(), addresses("ns-1", "a", "one", "100.96.1.9"))
			select {
			case ok := <-there:
				if !ok {
					t.Error("the API server hasn't got the address yet")
				}
			case <-time.After(time.Minute):
				t.Error("still waiting after a minute")
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	publish(t).source.AwaitPublished(ctx, endpoint.Pod{Namespace: "ns-1", Name: "nobody", UID: "x"})
}

// TestPublishBeforeThePodIsKnown: if Publish is called before the watch reports the pod, the address is written when
// the watch reports the pod.
func TestPublishBeforeThePodIsKnown(t *testing.T) {
	p := publish(t)
	p.source.Publish(t.Context(), addresses("ns-1", "late", "two", "100.96.1.9"))
	p.setIP("late", "")
	p.wantPatch("late", "two", "100.96.1.9")
}

// TestPublishAStaticPod: a static pod has one UID in the runtime and another in the API server. Publish gets the
// runtime's UID, and the patch must have the UID in the API server.
func TestPublishAStaticPod(t *testing.T) {
	p := publish(t)
	p.source.Publish(t.Context(), addresses("kube-system", "static-n1", "runtime", "100.96.1.9"))
	p.wantPatch("static-n1", "api", "100.96.1.9")
}

// TestPublishNoNamesake: a new pod never gets the address of an old pod of the same name.
func TestPublishNoNamesake(t *testing.T) {
	for name, uid := range map[string]string{"another UID": "old", "no UID": ""} {
		t.Run(name, func(t *testing.T) {
			p := publish(t)
			p.source.Publish(t.Context(), addresses("ns-1", "a", uid, "100.96.1.9"))
			p.setIP("a", "")
			p.wantNone()
		})
	}
}

// TestPublishGivesUpQuietly: patch returns no error if the API server's answer means that the pod is gone. Any other
// refusal is an error.
func TestPublishGivesUpQuietly(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, tc := range map[string]struct {
		answer error
		quiet  bool
	}{
		"gone":      {apierrors.NewNotFound(pods, "a"), true},
		"conflict":  {apierrors.NewConflict(pods, "a", nil), true},
		"invalid":   {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "a", nil), true},
		"forbidden": {apierrors.NewGenericServerResponse(http.StatusForbidden, "patch", pods, "a", "no", 0, true), false},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("patch", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
				return true, nil, tc.answer
			})
			a := policy.Name{Namespace: "ns-1", Name: "a"}
			if err := (&Source{Client: client}).patch(t.Context(), a, "one",
				[]netip.Addr{netip.MustParseAddr("100.96.1.9")}); (err == nil) != tc.quiet {
				t.Errorf("error %v", err)
			}
		})
	}
}
