package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-net/weir/policy"
)

type viewer struct{ *cluster }

func (viewer) View(context.Context, func(*policy.Pod) bool) (policy.Objects, []policy.Service, error) {
	var o policy.Objects
	for i := range 100_000 {
		o.Pods = append(o.Pods, policy.Pod{Namespace: "ns-1", Name: fmt.Sprintf("%0250d", i)})
	}
	return o, nil, nil
}

// TestStoppedClient: if a client asks for all objects and doesn't read the answer, the agent answers other clients'
// questions. Only a second answer with all objects waits, because each such answer takes much memory.
func TestStoppedClient(t *testing.T) {
	x := explainer{
		source: viewer{newCluster()}, snapshots: &snapshots{}, status: &atomic.Pointer[status]{},
		one: make(chan struct{}, 1), sending: make(chan struct{}, 1),
	}
	x.snapshots.init()
	server := httptest.NewServer(http.HandlerFunc(x.serveObjects))
	defer server.Close()
	stopped, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stopped.Close() }()
	if _, err := fmt.Fprint(stopped, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := stopped.Read(make([]byte, 1)); err != nil { // the answer has begun
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if !x.begin(ctx) {
		t.Fatal("the next question waits for a client that doesn't read")
	}
	x.end()
	if len(x.sending) != 1 {
		t.Error("a second answer may take as much memory while the first is being sent")
	}
}
