package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestKeepLock: if the file of the agent's lock was removed, the agent makes the file again and locks it. If another
// agent has made and locked the file, keep returns an error.
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

// TestUnseenPlaces: if the agent can't find out whether the files of its lock and its socket exist, it goes on, and
// tries again at the next resync. It keeps its lock and its socket meanwhile.
func TestUnseenPlaces(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	lock, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listenSocket(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	logged := make(chan string)
	a := &agent{Options: Options{
		Resync: time.Millisecond, Log: slog.New(slog.NewTextHandler(lines{t.Context(), logged}, nil)),
	}}
	ctx, end := context.WithCancel(t.Context())
	kept := make(chan error)
	go func() { kept <- a.keepPlaces(ctx, lock, socket) }()
	// wait waits until the agent has logged a line that contains the text in the parameter want.
	wait := func(want string) {
		t.Helper()
		for {
			select {
			case line := <-logged:
				if strings.Contains(line, want) {
					return
				}
			case err := <-kept:
				t.Fatalf("the agent ends, and hasn't logged %q: %v", want, err)
			}
		}
	}

	const link = endpoint.Dir + ".link"
	if err := os.Symlink(endpoint.Dir, link); err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := unix.Renameat2(unix.AT_FDCWD, endpoint.Dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
	}
	exchange() // now the directory's path is a symbolic link to itself, and each look-up below it fails
	for range 2 {
		wait("can't look for a file of the agent")
	}
	exchange()
	if _, err := Lock(); err == nil || !strings.Contains(err.Error(), "another weir-agent runs") {
		t.Errorf("the agent has lost its lock: %v", err)
	}
	if conn, err := net.Dial("unix", agentapi.Socket); err != nil {
		t.Errorf("the agent has lost its socket: %v", err)
	} else {
		_ = conn.Close()
	}
	for _, file := range []string{lockFile, agentapi.Socket} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		wait("file=" + file)
	}
	end()
	if err := <-kept; err != nil {
		t.Error(err)
	}
}

type lines struct {
	ctx context.Context
	to  chan<- string
}

func (l lines) Write(line []byte) (int, error) {
	select {
	case l.to <- string(line):
	case <-l.ctx.Done():
	}
	return len(line), nil
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
