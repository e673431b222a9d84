package agentapi

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

func listen(t *testing.T, h http.HandlerFunc) (closeIt func()) {
	t.Helper()
	if err := os.MkdirAll(endpoint.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return func() {
		_ = s.Close()
		wg.Wait()
	}
}

// TestAskNoReader: if the context of a question ends, Ask returns, even if the question is large and the agent doesn't
// read it.
func TestAskNoReader(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	if err := os.MkdirAll(endpoint.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Ask(ctx, "POST", ExplainPath, make([]byte, 8<<20))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the question outlives its context")
	}
}

func TestEnrol(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, tc := range []struct {
		name   string
		answer func(http.ResponseWriter)
		want   EnrolAnswer
		err    string // empty if no error is wanted
	}{
		{
			"enrolled", answer(200, `{"ingress": "ns-1/deny", "egress": "open"}`),
			EnrolAnswer{Ingress: "ns-1/deny", Egress: "open"},
			"",
		},
		{"fields of a later agent", answer(200, `{"ingress": "open", "more": {}}`), EnrolAnswer{Ingress: "open"}, ""},
		{
			"outdated", answer(409, `{"error": "the address is another node's"}`),
			EnrolAnswer{Error: "the address is another node's"},
			"the configuration is out of date: the address is another node's",
		},
		{
			"refused", answer(404, `{"error": "no pod ns-1/a is known"}`),
			EnrolAnswer{Error: "no pod ns-1/a is known"},
			"enrol c1:eth0: no pod ns-1/a is known",
		},
		{
			"failed", answer(500, `{"error": "iptables-restore: line 3 failed"}`),
			EnrolAnswer{Error: "iptables-restore: line 3 failed"},
			"iptables-restore: line 3 failed",
		},
		{"not JSON", answer(200, `<html>`), EnrolAnswer{}, "the agent's answer (200)"},
		{"not ours", answer(404, "404 page not found"), EnrolAnswer{}, "the agent's answer (404)"},
		{"nothing", answer(200, ""), EnrolAnswer{}, "the agent's answer (200)"},
		{"half", answer(200, `{"ingress": "op`), EnrolAnswer{}, "the agent's answer (200)"},
		{"crash", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, EnrolAnswer{}, "enrol c1:eth0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			requests := make(chan EnrolRequest, 1)
			defer func() { _ = os.Remove(Socket) }()
			defer listen(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.Path != EnrolPath {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				var request EnrolRequest
				if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
					t.Error(err)
				}
				requests <- request
				tc.answer(w)
			})()
			got, err := Enrol(t.Context(), "c1:eth0")()
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("%v, want an error with %q", err, tc.err)
			}
			if errors.Is(err, ErrNoAgent) {
				t.Errorf("%v: there is an agent", err)
			}
			if tc.name != "half" { // half an answer is an error, so its decoded part doesn't matter
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Error(diff)
				}
			}
			if request := <-requests; request.ID != "c1:eth0" {
				t.Errorf("the agent was asked for %q", request.ID)
			}
		})
	}
}

func answer(status int, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func TestEnrolWithNoAgent(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	if _, err := Enrol(t.Context(), "c1:eth0")(); !errors.Is(err, ErrNoAgent) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v, want ErrNoAgent and why", err)
	}
	listen(t, func(http.ResponseWriter, *http.Request) {})()
	if _, err := Enrol(t.Context(), "c1:eth0")(); !errors.Is(err, ErrNoAgent) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a dead agent's socket: %v, want ErrNoAgent and why", err)
	}
}

func TestEnrolGivesUp(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer listen(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel() // the agent has the request, but doesn't answer yet
		<-r.Context().Done()
	})()
	for _, when := range []string{"after", "before"} {
		if _, err := Enrol(ctx, "c1:eth0")(); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoAgent) {
			t.Errorf("cancelled %s the connection: %v, want that the context was cancelled", when, err)
		}
	}
}
