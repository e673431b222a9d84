package probe

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// TestRun: each kind of probe succeeds if a pod answers. A failed probe says why it failed.
func TestRun(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	other, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts connections, and no program answers
	if err != nil {
		t.Fatal(err)
	}
	closed := other.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- serve(ctx, "pod-1", listener, packets) }()
	tcp := listener.Addr().String()
	const long, short = time.Minute, 50 * time.Millisecond
	for _, tc := range []struct {
		p    Probe
		want Result
	}{
		{Probe{Connect, tcp, long}, Result{OK: true, Answer: "pod-1"}},
		{Probe{Open, tcp, long}, Result{OK: true}},
		{Probe{Large, packets.LocalAddr().String(), long}, Result{OK: true, Answer: "65535 bytes"}},
		{Probe{Large, silent.LocalAddr().String(), short}, Result{Error: "no answer", Timeout: true}},
		{Probe{Connect, closed, short}, Result{Error: "no answer", Timeout: true}},
		{Probe{Resolve, "localhost", long}, Result{OK: true}},
		{Probe{"guess", tcp, long}, Result{Error: `this version of weir knows no probe "guess"`}},
	} {
		got := Run(t.Context(), []Probe{tc.p})[0]
		if tc.p.Kind == Resolve && strings.Contains(got.Answer, "127.0.0.1") {
			got.Answer = ""
		}
		if got != tc.want {
			t.Errorf("%+v: %+v, want %+v", tc.p, got, tc.want)
		}
	}
	_ = other.Close()
	if got := Run(t.Context(), []Probe{{Open, closed, long}})[0]; got.OK || !strings.Contains(got.Error, "refused") {
		t.Errorf("%+v", got)
	}
	many := make([]Probe, 3*parallel)
	for i := range many {
		many[i] = Probe{Connect, tcp, long}
	}
	for i, r := range Run(t.Context(), many) {
		if !r.OK {
			t.Errorf("%d: %+v", i, r)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
