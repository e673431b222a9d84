package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

func apiServer(t *testing.T, status *atomic.Int64) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		watch := r.URL.Query().Get("watch") == "true"
		switch code := int(status.Load()); {
		case strings.Contains(r.URL.Path, "/pods/"): // a request for one pod, not a watch
			w.WriteHeader(http.StatusNotFound)
		case code == 0:
			panic(http.ErrAbortHandler)
		case code != http.StatusOK:
			w.WriteHeader(code)
		case watch && r.URL.Query().Has("sendInitialEvents"):
			w.WriteHeader(http.StatusUnprocessableEntity) // the client then lists instead of streaming
		case watch:
			w.(http.Flusher).Flush() // the watch ends at once, so the source begins another watch
		default:
			_, _ = w.Write([]byte(`{"metadata": {"resourceVersion": "1"}, "items": []}`))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func TestContact(t *testing.T) {
	for name, tc := range map[string]struct {
		code int
		want string
	}{
		"away": {0, "EOF"}, "forbidden": {http.StatusForbidden, "/api/v1/nodes: 403"},
		"broken": {http.StatusInternalServerError, "/api/v1/pods: 500"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var status atomic.Int64
			status.Store(http.StatusOK)
			source := &Source{}
			config := &rest.Config{Host: apiServer(t, &status).URL, QPS: -1, ContentConfig: contentTypes}
			config.Wrap(source.Transport)
			var err error
			if source.Client, err = kubernetes.NewForConfig(config); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			updates, done := make(chan error, 100), make(chan error, 1)
			go func() { done <- source.Run(ctx, func(_ *policy.Delta, err error) { updates <- err }) }()
			contact := func(want string) {
				t.Helper()
				for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
					err := source.Contact()
					if (want == "" && err == nil) || (want != "" && err != nil && strings.Contains(err.Error(), want)) {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("the contact is %v, want %q", err, want)
					}
				}
			}
			contact("")
			status.Store(int64(tc.code))
			contact(tc.want)
			// A response to a request for one pod isn't evidence that the API server answers watches.
			if _, _, err := source.Lookup(ctx, endpoint.Pod{Namespace: "ns-1", Name: "a"}); err != nil {
				t.Error(err)
			}
			contact(tc.want)
			status.Store(http.StatusOK)
			contact("")
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := source.Contact(); err != nil {
				t.Errorf("the end of the source counts as a fault: %v", err)
			}
		})
	}
}

// TestContactIsPatient: Contact returns the statuses 410 and 429 as errors only if the API server gives no other answer
// for a minute (patience).
func TestContactIsPatient(t *testing.T) {
	source := &Source{}
	answer := func(code int) {
		t.Helper()
		rt := source.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: code, Status: http.StatusText(code)}, nil
		}))
		r := httptest.NewRequest(http.MethodGet, "/api/v1/pods?watch=true", nil)
		if _, err := rt.RoundTrip(r); err != nil { //nolint:bodyclose // no body
			t.Fatal(err)
		}
	}
	told := func(after time.Duration) bool { return source.contact.at(time.Now().Add(after)) != nil }
	for _, code := range []int{http.StatusGone, http.StatusTooManyRequests} {
		for range 2 { // the second answer doesn't restart the minute
			if answer(code); told(0) {
				t.Errorf("%d counts as an error at once", code)
			}
		}
		if err := source.contact.at(time.Now().Add(patience)); err == nil ||
			!strings.Contains(err.Error(), "/api/v1/pods: "+http.StatusText(code)) {
			t.Errorf("after %s of %d: %v", patience, code, err)
		}
		if answer(http.StatusOK); told(patience) {
			t.Errorf("%d counts after an answer", code)
		}
	}
	answer(http.StatusInternalServerError)
	if answer(http.StatusTooManyRequests); !told(0) {
		t.Error("429 ends an error that counts already")
	}
}

// TestContactTellsOfIncompleteLists: if the API server accepts each watch, but breaks off its stream of all pods,
// Contact returns an error after a minute (patience).
func TestContactTellsOfIncompleteLists(t *testing.T) {
	server, config := newStreams(t)
	source := sourceOf(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, func(*policy.Delta, error) {}) }()
	answer := func(w podWatch) {
		t.Helper()
		select {
		case server.pods <- w:
		case <-time.After(30 * time.Second):
			t.Fatal("the source doesn't watch pods")
		}
	}
	want := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			err := source.contact.at(time.Now().Add(patience))
			if got := fmt.Sprint(err); got == want {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("the contact is %s, want %s", got, want)
			}
		}
	}
	dying := make(chan struct{})
	close(dying)
	half := podWatch{events: []watch.Event{{Type: watch.Added, Object: newPod(func(*corev1.Pod) {})}}, end: dying}
	for range 2 {
		answer(half)
		want("the API server has not sent all objects of kind Pod within " + patience.String())
		if err := source.Contact(); err != nil {
			t.Errorf("an incomplete list is an error at once: %v", err)
		}
	}
	answer(podWatch{events: append(half.events, bookmark(&corev1.Pod{})), end: make(chan struct{})})
	want("<nil>")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
