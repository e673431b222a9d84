package blackbox

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

const healthAddress = "127.0.0.1:6786"

func asked(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", healthAddress)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: weir\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("/healthz: %v", err)
	}
	_ = answer.Body.Close()
	return conn
}

// isOpen returns false once the other end has closed the connection. It doesn't wait.
func isOpen(t *testing.T, conn net.Conn) bool {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var received error
	if err := raw.Control(func(fd uintptr) {
		_, _, received = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT)
	}); err != nil {
		t.Fatal(err)
	}
	return errors.Is(received, unix.EAGAIN)
}

func hungUp(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestIdleHealthConnectionsEnd: if a connection is idle after an answer, the agent closes it. On a machine that isn't
// busy, this takes ten seconds.
func TestIdleHealthConnectionsEnd(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.StartAgent()
	if conn := asked(t); !hungUp(t, conn, time.Minute) {
		t.Error("an idle connection is still open after a minute")
	}
}

// TestHealthConnectionsAreBounded: of 300 idle connections, the agent keeps at most 64, and still answers kubelet.
func TestHealthConnectionsAreBounded(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.StartAgent()
	var err error
	for range 3 { // several tries, because the agent may wait for a processor
		if err = bounded(t); err == nil {
			return
		}
	}
	t.Error(err)
}

// bounded opens 300 connections, and returns an error if more than 64 stay open.
func bounded(t *testing.T) error {
	t.Helper()
	var all []net.Conn
	for range 300 {
		all = append(all, asked(t))
	}
	asked(t) // this stands for kubelet's request
	// Wait, because the agent closes connections in other goroutines. The wait is shorter than the ten seconds after which
	// the agent closes any idle connection.
	return within(5*time.Second, func() error {
		open := 0
		for _, conn := range all {
			if isOpen(t, conn) {
				open++
			}
		}
		if open > 64 {
			return fmt.Errorf("of 300 connections %d are open", open)
		}
		return nil
	})
}
