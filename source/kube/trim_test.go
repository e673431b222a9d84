package kube

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	clientwatch "k8s.io/client-go/rest/watch"

	"github.com/weir-net/weir/source/objects"
)

func encodeEvents(t testing.TB, events ...watch.Event) []byte {
	t.Helper()
	var stream bytes.Buffer
	s := &streams{t: t}
	write := s.encoder(bufferedFile{&stream, http.Header{}}, runtime.ContentTypeProtobuf)
	for _, e := range events {
		write(e)
	}
	return stream.Bytes()
}

func answerOf(t testing.TB, path string, status int, contentType string, body io.Reader) io.ReadCloser {
	t.Helper()
	rt := (&Source{}).Transport(roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(body),
		}, nil
	}))
	resp, err := rt.RoundTrip(httptest.NewRequest(http.MethodGet, path, nil)) //nolint:bodyclose // the caller closes Body
	if err != nil {
		t.Fatal(err)
	}
	return resp.Body
}

const watchType = runtime.ContentTypeProtobuf + ";stream=watch"

func eventsOf(body io.ReadCloser) *clientwatch.Decoder {
	info, _ := runtime.SerializerInfoForMediaType(clientscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	frames := streaming.NewDecoder(info.StreamSerializer.NewFrameReader(body), info.StreamSerializer.Serializer)
	return clientwatch.NewDecoder(frames, clientscheme.Codecs.UniversalDeserializer())
}

func decodeEvents(t testing.TB, body io.ReadCloser) []watch.Event {
	t.Helper()
	d := eventsOf(body)
	var all []watch.Event
	for {
		kind, object, err := d.Decode()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, watch.Event{Type: kind, Object: object})
	}
}

func wholePods() []*corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	all := []*corev1.Pod{{}, realisticPod(7, true), realisticPod(70_000, false)}
	for _, change := range []func(*corev1.Pod){
		func(p *corev1.Pod) { p.Annotations[corev1.MirrorPodAnnotationKey] = "runtime" },
		func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		func(p *corev1.Pod) { p.Status.PodIPs = nil },
		func(p *corev1.Pod) {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00::1"}, corev1.PodIP{IP: "?"})
		},
		func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "x"}, {
				Name: "s", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "x", ContainerPort: 1, HostPort: 2}},
			}}
		},
		func(p *corev1.Pod) { p.Labels = nil },
		func(p *corev1.Pod) { p.DeletionTimestamp = &p.CreationTimestamp },
	} {
		p := realisticPod(1, false)
		change(p)
		all = append(all, p)
	}
	return all
}

func onlyMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
	for _, key := range []string{corev1.MirrorPodAnnotationKey, metav1.InitialEventsAnnotationKey} {
		if value, ok := m.Annotations[key]; ok {
			kept.Annotations = map[string]string{key: value}
		}
	}
	return kept
}

func only(p *corev1.Pod) *corev1.Pod {
	containers := func(all []corev1.Container) (some []corev1.Container) {
		for _, c := range all {
			some = append(some, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
		return some
	}
	return &corev1.Pod{
		ObjectMeta: onlyMeta(p.ObjectMeta),
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
			Containers: containers(p.Spec.Containers), InitContainers: containers(p.Spec.InitContainers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
}

// TestTrim: the trimmed events of a watch on pods have only the fields that the source needs.
func TestTrim(t *testing.T) {
	var events, want []watch.Event
	for _, p := range wholePods() {
		events = append(events, watch.Event{Type: watch.Modified, Object: p})
		want = append(want, watch.Event{Type: watch.Modified, Object: only(p)})
	}
	gone := apierrors.NewResourceExpired("too old").ErrStatus
	for _, e := range []watch.Event{bookmark(&corev1.Pod{}), {Type: watch.Error, Object: &gone}} {
		events, want = append(events, e), append(want, e)
	}
	stream := encodeEvents(t, events...)
	want = decodeEvents(t, io.NopCloser(bytes.NewReader(encodeEvents(t, want...))))
	for name, body := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		got := decodeEvents(t, answerOf(t, "/api/v1/pods?watch=true", http.StatusOK, watchType, body))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for i, p := range wholePods() {
			whole, problems := objects.Pod(p)
			kept, stillProblems := objects.Pod(got[i].Object.(*corev1.Pod))
			if diff := cmp.Diff(whole, kept, cmpopts.EquateComparable(netip.Addr{})); diff != "" ||
				!slices.Equal(problems, stillProblems) {
				t.Errorf("%s: policy sees another pod: %s, %v", name, diff, stillProblems)
			}
		}
	}
	trimmed, err := io.ReadAll(answerOf(t, "/api/v1/pods?watch=true", http.StatusOK, watchType, bytes.NewReader(stream)))
	if err != nil || len(trimmed) > len(stream)/4 {
		t.Errorf("%d of %d bytes are left (%v)", len(trimmed), len(stream), err)
	}
}

func TestTrimNodes(t *testing.T) {
	n := &corev1.Node{
		ObjectMeta: realisticPod(1, false).ObjectMeta,
		Spec: corev1.NodeSpec{
			PodCIDR: "10.0.0.0/24", PodCIDRs: []string{"10.0.0.0/24", "fd00::/64"}, ProviderID: "aws:///x",
		},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.1.0.1"}},
			Images:    []corev1.ContainerImage{{Names: []string{"a", "b"}, SizeBytes: 1}},
		},
	}
	only := func(n *corev1.Node) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: onlyMeta(n.ObjectMeta), Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
			Status: corev1.NodeStatus{Addresses: n.Status.Addresses},
		}
	}
	end := bookmark(n)
	stream := encodeEvents(t, watch.Event{Type: watch.Added, Object: n}, end)
	wanted := encodeEvents(t, watch.Event{Type: watch.Added, Object: only(n)},
		watch.Event{Type: watch.Bookmark, Object: only(end.Object.(*corev1.Node))})
	got := answerOf(t, "/api/v1/nodes?watch=true", http.StatusOK, watchType, bytes.NewReader(stream))
	want := decodeEvents(t, io.NopCloser(bytes.NewReader(wanted)))
	if diff := cmp.Diff(want, decodeEvents(t, got)); diff != "" {
		t.Error(diff)
	}
}

// TestTrimLeavesTheRestAlone: if a response is no watch on pods or nodes, or can't be parsed, the trimmer passes it on
// unchanged.
func TestTrimLeavesTheRestAlone(t *testing.T) {
	stream := encodeEvents(t, watch.Event{Type: watch.Added, Object: realisticPod(1, false)})
	const pods = "/api/v1/pods?watch=true"
	noMagic := bytes.Replace(stream, []byte(magic), []byte("xxxx"), 1)
	for name, tc := range map[string]struct {
		path, contentType string
		status            int
		body              []byte
	}{
		"another kind": {"/api/v1/namespaces?watch=true", watchType, http.StatusOK, stream},
		"no watch":     {"/api/v1/pods", runtime.ContentTypeProtobuf, http.StatusOK, stream},
		"one pod":      {"/api/v1/namespaces/a/pods/b?watch=true", watchType, http.StatusOK, stream},
		"an error":     {pods, watchType, http.StatusForbidden, stream},
		"JSON":         {pods, runtime.ContentTypeJSON, http.StatusOK, []byte(`{"type": "ADDED"}`)},
		"a Node":       {"/api/v1/nodes?watch=true", watchType, http.StatusOK, stream},
		"a long frame": {pods, watchType, http.StatusOK, append([]byte{1, 0, 0, 1}, make([]byte, 1<<16)...)},
		"no message":   {pods, watchType, http.StatusOK, []byte{0, 0, 0, 2, 0xff, 0xff}},
		"no magic":     {pods, watchType, http.StatusOK, noMagic},
	} {
		got, err := io.ReadAll(answerOf(t, tc.path, tc.status, tc.contentType, bytes.NewReader(tc.body)))
		if err != nil || !bytes.Equal(got, tc.body) {
			t.Errorf("%s: %d bytes have become %d (%v)", name, len(tc.body), len(got), err)
		}
	}
	half := answerOf(t, "/api/v1/pods?watch=true", http.StatusOK, watchType, bytes.NewReader(stream[:len(stream)/2]))
	if got, err := io.ReadAll(half); len(got) > 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of half an event %d bytes arrive, with %v", len(got), err)
	}
}

// TestTrimAnything: if some bytes of a frame are random, the trimmer neither panics nor returns an error, and the frame
// doesn't become longer.
func TestTrimAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	stream := encodeEvents(t, watch.Event{Type: watch.Added, Object: realisticPod(1, true)})
	for range 20_000 {
		b := bytes.Clone(stream)
		for range 1 + r.IntN(4) {
			b[4+r.IntN(len(b)-4)] = byte(r.Uint32())
		}
		got, err := io.ReadAll(answerOf(t, "/api/v1/pods?watch=true", http.StatusOK, watchType, bytes.NewReader(b)))
		if err != nil || len(got) > len(b) {
			t.Fatalf("%d bytes have become %d (%v)", len(b), len(got), err)
		}
	}
}

// BenchmarkDecode measures how long the client takes to decode one event, with and without trimming.
func BenchmarkDecode(b *testing.B) {
	stream := encodeEvents(b, watch.Event{Type: watch.Modified, Object: realisticPod(77, false)})
	for name, path := range map[string]string{"trimmed": "/api/v1/pods?watch=true", "whole": "/api/v1/others?watch=true"} {
		b.Run(name, func(b *testing.B) {
			events := eventsOf(answerOf(b, path, http.StatusOK, watchType, &repeated{stream: stream}))
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := events.Decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type repeated struct {
	stream []byte
	at     int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.stream[r.at:])
	r.at = (r.at + n) % len(r.stream)
	return n, nil
}
