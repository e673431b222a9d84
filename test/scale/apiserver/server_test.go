package apiserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func newTestServer(t *testing.T, l limits) (*Server, kubernetes.Interface) {
	t.Helper()
	s, err := newServer("127.0.0.1:0", l, []Kind{Namespaces(nil), Pods(nil), Events()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	config, err := clientcmd.RESTConfigFromKubeConfig(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType = runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

func namespace(i int) *corev1.Namespace {
	name := fmt.Sprint("ns-", i)
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-of-" + name)}}
}

func next(t *testing.T, w apiwatch.Interface, want apiwatch.EventType) apiwatch.Event {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch has ended without %s", want)
			}
			if e.Type == want {
				return e
			}
		case <-deadline:
			t.Fatalf("no %s within half a minute", want)
		}
	}
}

// TestBookmarks: if a client asks for initial events, a bookmark with an annotation marks their end. Later bookmarks
// have the current version, and no annotation.
func TestBookmarks(t *testing.T) {
	s, client := newTestServer(t, limits{log: 10, queue: 10, bookmarks: 20 * time.Millisecond})
	s.Put(namespace(1))
	yes := true
	w, err := client.CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	next(t, w, apiwatch.Added)
	first := next(t, w, apiwatch.Bookmark).Object.(*corev1.Namespace)
	if first.Annotations[metav1.InitialEventsAnnotationKey] != "true" || first.ResourceVersion != "1001" {
		t.Errorf("%+v", first)
	}
	s.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "p"}})
	for {
		mark := next(t, w, apiwatch.Bookmark).Object.(*corev1.Namespace)
		if len(mark.Annotations) != 0 {
			t.Fatalf("%+v", mark)
		}
		if mark.ResourceVersion == "1002" {
			break
		}
	}
}

// TestForgets: if the server has forgotten events that a watch needs, it refuses the watch.
func TestForgets(t *testing.T) {
	s, client := newTestServer(t, limits{log: 10, queue: 100, bookmarks: time.Minute})
	for i := range 100 {
		s.Put(namespace(i))
	}
	namespaces := client.CoreV1().Namespaces()
	_, err := namespaces.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1010"})
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("an old watch: %v", err)
	}
	w, err := namespaces.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1095"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for i := 95; i < 100; i++ {
		if o := next(t, w, apiwatch.Added).Object.(*corev1.Namespace); o.Name != fmt.Sprint("ns-", i) {
			t.Errorf("%s; want ns-%d", o.Name, i)
		}
	}
}

// TestSlowClient: if a client doesn't read, its watch ends. Changes don't wait for the client.
func TestSlowClient(t *testing.T) {
	s, client := newTestServer(t, limits{log: 10, queue: 2, bookmarks: time.Minute})
	w, err := client.CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	big := namespace(1)
	big.Annotations = map[string]string{"large": strings.Repeat("x", 1<<20)}
	watches := func() int { return s.Sent()["namespaces"].Watches }
	for i := 0; i < 1000 && watches() > 0; i++ { // the buffers of the client and the kernel have room for some events
		s.Put(big)
	}
	if watches() > 0 {
		t.Error("the watch goes on")
	}
}

// TestEvents: if a client creates the same event twice, the second attempt fails with AlreadyExists.
func TestEvents(t *testing.T) {
	s, client := newTestServer(t, limits{log: 10, queue: 10, bookmarks: time.Minute})
	e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, Reason: "Because"}
	for _, exists := range []bool{false, true} {
		_, err := client.CoreV1().Events("default").Create(t.Context(), e, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) != exists || !exists && err != nil {
			t.Errorf("exists: %v, got %v", exists, err)
		}
	}
	if got, ok := s.Get(e).(*corev1.Event); !ok || got.Reason != "Because" {
		t.Errorf("%+v", got)
	}
}
