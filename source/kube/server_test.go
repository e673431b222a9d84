package kube

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

type streams struct {
	t      testing.TB
	pods   chan podWatch
	unable bool
	lists  atomic.Int32 // number of requests for a whole list, as opposed to a stream
}

type podWatch struct {
	status int // HTTP status of the response; 0 means 200
	events []watch.Event
	file   string // path of a file with more encoded events, sent after events
	more   chan watch.Event
	end    chan struct{}
}

func newStreams(t testing.TB) (*streams, *rest.Config) {
	t.Helper()
	s := &streams{t: t, pods: make(chan podWatch)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, &rest.Config{Host: server.URL, QPS: -1, ContentConfig: contentTypes}
}

var contentTypes = rest.ContentConfig{
	ContentType:        runtime.ContentTypeProtobuf,
	AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
}

func (s *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kinds := map[string]runtime.Object{
		"/api/v1/pods": &corev1.Pod{}, "/api/v1/namespaces": &corev1.Namespace{}, "/api/v1/nodes": &corev1.Node{},
		"/apis/networking.k8s.io/v1/networkpolicies": &networkingv1.NetworkPolicy{},
	}
	if kinds[r.URL.Path] == nil { // a request for other kinds of policies (unenforced.go)
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("watch") != "true" {
		s.list(w, r, kinds[r.URL.Path])
		return
	}
	answer := podWatch{end: make(chan struct{})}
	if r.URL.Query().Get("sendInitialEvents") == "true" && s.unable {
		s.encoder(w, r.Header.Get("Accept"))(watch.Event{Type: watch.Error, Object: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
			Message: "a watch stream was requested by the client but the required storage feature RequestWatchProgress is " +
				"disabled",
		}})
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		answer.events = []watch.Event{bookmark(kinds[r.URL.Path])}
	}
	if r.URL.Path == "/api/v1/pods" {
		select {
		case answer = <-s.pods:
		case <-r.Context().Done():
			return
		}
	}
	if answer.status != 0 {
		w.WriteHeader(answer.status)
		return
	}
	write := s.encoder(w, r.Header.Get("Accept"))
	for _, e := range answer.events {
		write(e)
	}
	if answer.file != "" {
		if err := sendFile(w, answer.file); err != nil {
			s.t.Error(err)
		}
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-answer.more:
			write(e)
			w.(http.Flusher).Flush()
		case <-answer.end:
			panic(http.ErrAbortHandler) // breaks the connection off
		case <-r.Context().Done():
			return
		}
	}
}

func (s *streams) list(w http.ResponseWriter, r *http.Request, kind runtime.Object) {
	if s.lists.Add(1); !s.unable {
		s.t.Errorf("the client asks for a list in one piece: %s", r.URL)
	}
	if r.URL.Query().Get("resourceVersion") == "0" {
		s.t.Errorf("the client asks for a list that may be old: %s", r.URL)
	}
	lists := map[runtime.Object]runtime.Object{}
	meta := metav1.ListMeta{ResourceVersion: "5"}
	switch kind.(type) {
	case *corev1.Pod:
		pod := newPod(func(p *corev1.Pod) { p.ResourceVersion = "5" })
		lists[kind] = &corev1.PodList{ListMeta: meta, Items: []corev1.Pod{*pod}}
	case *corev1.Namespace:
		lists[kind] = &corev1.NamespaceList{ListMeta: meta}
	case *corev1.Node:
		lists[kind] = &corev1.NodeList{ListMeta: meta}
	default:
		lists[kind] = &networkingv1.NetworkPolicyList{ListMeta: meta}
	}
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	info, _ := runtime.SerializerInfoForMediaType(clientscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	groups := schema.GroupVersions{corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion}
	if err := clientscheme.Codecs.EncoderForVersion(info.Serializer, groups).Encode(lists[kind], w); err != nil {
		s.t.Error(err)
	}
}

func sendFile(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(w, f)
	return err
}

func (s *streams) encoder(w http.ResponseWriter, accept string) func(watch.Event) {
	contentType, _, _ := strings.Cut(accept, ",")
	if contentType, _, _ = strings.Cut(contentType, ";"); contentType != runtime.ContentTypeProtobuf {
		s.t.Errorf("the client accepts %q, which doesn't begin with protobuf", accept)
	}
	info, ok := runtime.SerializerInfoForMediaType(clientscheme.Codecs.SupportedMediaTypes(), contentType)
	if !ok {
		s.t.Fatalf("no serializer for %q", contentType)
	}
	w.Header().Set("Content-Type", contentType+";stream=watch")
	frames := streaming.NewEncoder(info.StreamSerializer.NewFrameWriter(w),
		clientscheme.Codecs.EncoderForVersion(info.StreamSerializer.Serializer, corev1.SchemeGroupVersion))
	return func(e watch.Event) {
		group := corev1.SchemeGroupVersion
		if _, ok := e.Object.(*networkingv1.NetworkPolicy); ok {
			group = networkingv1.SchemeGroupVersion
		}
		var object bytes.Buffer
		if err := clientscheme.Codecs.EncoderForVersion(info.Serializer, group).Encode(e.Object, &object); err != nil {
			s.t.Error(err)
		}
		event := &metav1.WatchEvent{Type: string(e.Type), Object: runtime.RawExtension{Raw: object.Bytes()}}
		if err := frames.Encode(event); err != nil {
			s.t.Log(err) // the client has closed the connection
		}
	}
}

func bookmark(of runtime.Object) watch.Event {
	o := of.DeepCopyObject().(object)
	o.SetResourceVersion("7")
	o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return watch.Event{Type: watch.Bookmark, Object: o}
}

func sourceOf(t testing.TB, config *rest.Config) *Source {
	t.Helper()
	s := &Source{}
	config.Wrap(s.Transport)
	var err error
	if s.Client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return s
}
