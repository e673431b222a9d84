package agent

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestKeepLock: if the file of the agent's lock was removed, the agent locks the new file. If another agent has that
// lock, keep returns an error.
func TestKeepLock(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	remove := func() {
		t.Helper()
		if err := os.Remove(lockFile); err != nil {
			t.Fatal(err)
		}
	}
	first, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	if made, err := first.keep(t.Context()); made != "" || err != nil {
		t.Errorf("with its file in its place: %q, %v", made, err)
	}
	remove()
	if made, err := first.keep(t.Context()); made != lockFile || err != nil {
		t.Errorf("without its file: %q, %v", made, err)
	}
	if _, err := Lock(); err == nil {
		t.Error("a second agent can start")
	}
	remove()
	second, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if _, err := first.keep(t.Context()); err == nil || !strings.Contains(err.Error(), "another weir-agent runs") {
		t.Errorf("beside a second agent: %v", err)
	}
}

// TestKeepSocket: if the agent's socket was removed, Accept goes on with a new socket. Close removes the socket, but
// not the socket of another agent.
func TestKeepSocket(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	if err := os.MkdirAll(endpoint.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	listen := func() *socket {
		t.Helper()
		s, err := listenSocket(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := listen()
	accepted := make(chan error)
	go func() {
		for {
			conn, err := s.Accept()
			if err == nil {
				_ = conn.Close()
			}
			accepted <- err
			if err != nil {
				return
			}
		}
	}()
	dial := func() {
		t.Helper()
		conn, err := net.Dial("unix", agentapi.Socket)
		if err == nil {
			err = errors.Join(<-accepted, conn.Close())
		}
		if err != nil {
			t.Error(err)
		}
	}
	dial()
	for _, want := range []string{"", agentapi.Socket} {
		if want != "" {
			if err := os.Remove(agentapi.Socket); err != nil {
				t.Fatal(err)
			}
		}
		if made, err := s.keep(t.Context()); made != want || err != nil {
			t.Errorf("made %q, %v; want %q", made, err, want)
		}
		dial()
	}
	if info, err := os.Stat(agentapi.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the new socket: %v, %v", info.Mode(), err)
	}

	other := listen()
	if err := s.Close(); err != nil || <-accepted == nil {
		t.Errorf("close: %v; want that Accept fails", err)
	}
	if made, err := s.keep(t.Context()); made != "" || err != nil {
		t.Errorf("after Close: %q, %v", made, err)
	}
	if _, err := os.Stat(agentapi.Socket); err != nil {
		t.Errorf("the other agent's socket: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(agentapi.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close the socket is left: %v", err)
	}
}
