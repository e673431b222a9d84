package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weir-net/weir/test/scale/apiserver"
)

func newCluster(pods int) *Cluster {
	return New(pods, 110, 100, netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1"))
}

func serve(t *testing.T, c *Cluster, contentType string) (*apiserver.Server, kubernetes.Interface) {
	t.Helper()
	s, err := c.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	config, err := clientcmd.RESTConfigFromKubeConfig(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType = contentType
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

// TestReflector: client-go lists all objects and follows each change, as JSON and as protobuf, with and without
// WatchList.
func TestReflector(t *testing.T) {
	for _, contentType := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		for _, watchList := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/WatchList=%v", contentType, watchList), func(t *testing.T) {
				t.Parallel()
				follow(t, contentType, watchList)
			})
		}
	}
}

func follow(t *testing.T, contentType string, watchList bool) {
	c := newCluster(500)
	s, client := serve(t, c, contentType)
	ctx := t.Context()
	pods := client.CoreV1().Pods("")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: pods.Watch,
	}
	var source cache.ListerWatcher = lw
	if !watchList {
		source = cache.ToListWatcherWithWatchListSemantics(lw, withoutWatchList{})
	}
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	go cache.NewReflectorWithOptions(source, &corev1.Pod{}, store, cache.ReflectorOptions{}).RunWithContext(ctx)
	eventually(t, "all pods", func() bool { return len(store.ListKeys()) == c.Pods })
	for _, o := range store.List() {
		p := o.(*corev1.Pod).DeepCopy()
		i, ok := PodBase{c}.Find(types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
		if !ok {
			t.Fatalf("%s/%s isn't found", p.Namespace, p.Name)
		}
		want := PodBase{c}.At(i, 0).(*corev1.Pod)
		p.TypeMeta, p.ResourceVersion = metav1.TypeMeta{}, ""
		if a, b := text(t, p), text(t, want); a != b {
			t.Fatalf("got %s\nwant %s", a, b)
		}
	}
	if sent := s.Sent()["pods"]; sent.Watches != 1 || sent.Listed.IsZero() {
		t.Errorf("%+v", sent)
	}

	get := func(like *corev1.Pod) *corev1.Pod {
		o, _, _ := store.GetByKey(like.Namespace + "/" + like.Name)
		p, _ := o.(*corev1.Pod)
		return p
	}
	fresh := NewPod("tenant-0", "fresh", "fresh", "uid-of-fresh")
	s.Put(fresh)
	eventually(t, "a new pod", func() bool { return get(fresh) != nil })
	far := 0
	for _, local := c.local[far]; local; _, local = c.local[far] {
		far++
	}
	old := PodBase{c}.At(far, 0).(*corev1.Pod)
	s.Beat(old, far)
	eventually(t, "a changed status", func() bool {
		return get(old).Status.Conditions[2].Status == corev1.ConditionFalse
	})
	s.Update(old, func(o apiserver.Object) { o.SetLabels(map[string]string{"app": "other"}) })
	eventually(t, "a changed label", func() bool { return get(old).Labels["app"] == "other" })
	patch := fmt.Appendf(nil, `{"metadata": {"uid": %q}, "status": {"podIPs": [{"ip": "10.1.2.3"}]}}`, fresh.UID)
	for uid, failed := range map[types.UID]bool{"other": true, fresh.UID: false} {
		_, err := client.CoreV1().Pods("tenant-0").Patch(ctx, "fresh", types.MergePatchType,
			fmt.Appendf(nil, `{"metadata": {"uid": %q}, "status": {"podIPs": [{"ip": "10.1.2.3"}]}}`, uid),
			metav1.PatchOptions{}, "status")
		if apierrors.IsConflict(err) != failed || !failed && err != nil {
			t.Errorf("patch of %s: %v", patch, err)
		}
	}
	eventually(t, "a published address", func() bool { return len(get(fresh).Status.PodIPs) == 1 })
	for _, p := range []*corev1.Pod{fresh, old} {
		s.Delete(p)
		eventually(t, "a deletion", func() bool { return get(p) == nil })
	}
	if len(store.List()) != c.Pods-1 {
		t.Errorf("%d pods; want %d", len(store.List()), c.Pods-1)
	}
}

type withoutWatchList struct{}

func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }

func text(t *testing.T, o any) string {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within half a minute", what)
		}
	}
}

// TestResume: a watch that begins at the version of a list gets all later events.
func TestResume(t *testing.T) {
	s, client := serve(t, newCluster(100), runtime.ContentTypeProtobuf)
	list, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{Limit: 30})
	if err != nil || len(list.Items) != 30 || list.Continue == "" {
		t.Fatalf("%d pods, %v", len(list.Items), err)
	}
	next, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{Limit: 100, Continue: list.Continue})
	if err != nil || len(next.Items) != 70 || next.Continue != "" {
		t.Fatalf("%d pods, %v", len(next.Items), err)
	}
	p := NewPod("tenant-0", "fresh", "fresh", "uid-of-fresh")
	s.Put(p)
	s.Update(p, func(o apiserver.Object) { o.(*corev1.Pod).Spec.NodeName = "node-9" })
	s.Delete(p)
	w, err := client.CoreV1().Pods("tenant-0").Watch(t.Context(), metav1.ListOptions{
		ResourceVersion: next.ResourceVersion, FieldSelector: "spec.nodeName=node-9", LabelSelector: "app=fresh",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, want := range []string{"ADDED", "DELETED"} {
		if e := <-w.ResultChan(); string(e.Type) != want {
			t.Errorf("%s; want %s", e.Type, want)
		}
	}
	_, err = client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	if !apierrors.IsGone(err) && !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch from the past: %v", err)
	}
}

func TestDiscovery(t *testing.T) {
	_, client := serve(t, newCluster(100), runtime.ContentTypeProtobuf)
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	if err != nil || len(lists) != 2 {
		t.Errorf("%v, %v", lists, err)
	}
}

// TestLocal: in clusters of all sizes, the measured node has the same pods, and the first namespaces have the same
// policies. Find finds each pod of a cluster by its name.
func TestLocal(t *testing.T) {
	large := newCluster(100_000)
	local := large.Local()
	if len(local) != 110 {
		t.Errorf("%d pods", len(local))
	}
	for _, pods := range []int{100, 1000, 10_000} {
		c := newCluster(pods)
		if n := len(c.Local()); n != min(pods, 110) {
			t.Errorf("of %d pods %d are local", pods, n)
		}
		for place, i := range c.Local() {
			a, b := PodBase{c}.At(i, 0), PodBase{large}.At(local[place], 0)
			b.SetUID(a.GetUID())
			if a, b := text(t, a), text(t, b); a != b {
				t.Fatalf("with %d pods:\n%s\n%s", pods, a, b)
			}
		}
		for i := range pods {
			name := types.NamespacedName{
				Namespace: PodBase{c}.At(i, 0).GetNamespace(), Name: PodBase{c}.At(i, 0).GetName(),
			}
			if found, ok := (PodBase{c}).Find(name); !ok || found != i {
				t.Fatalf("pod %d of %d, %s: found as %d, %v", i, pods, name, found, ok)
			}
		}
		for i := range 100 * PoliciesPerNamespace {
			if a, b := text(t, PolicyBase{c}.At(i, 0)), text(t, PolicyBase{large}.At(i, 0)); a != b {
				t.Fatalf("with %d pods:\n%s\n%s", pods, a, b)
			}
		}
	}
}

// TestRealistic: a pod has about 5 KB as JSON, and policies have peers.
func TestRealistic(t *testing.T) {
	c := newCluster(1000)
	size := len(text(t, PodBase{c}.At(501, 0)))
	packed, err := PodBase{c}.At(501, 0).(*corev1.Pod).Marshal()
	if err != nil || size < 4500 || size > 6000 {
		t.Errorf("%d bytes, %v", size, err)
	}
	t.Logf("a pod: %d bytes as JSON, %d as protobuf; a node: %d as JSON", size, len(packed),
		len(text(t, NodeBase{c}.At(5, 0))))
	if p := (PolicyBase{c}).At(3, 0).(*networkingv1.NetworkPolicy); len(p.Spec.Ingress[0].From) != 3 {
		t.Errorf("%+v", p)
	}
}

// BenchmarkPod makes and encodes a pod, as the API server does for a list.
func BenchmarkPod(b *testing.B) {
	c := newCluster(100_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := (PodBase{c}).At(i*7919%c.Pods, 0).(*corev1.Pod).Marshal(); err != nil {
			b.Fatal(err)
		}
	}
}
