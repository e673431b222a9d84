package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAConnectionThatIsOver: if a policy denies a connection that has already ended, the agent deletes the connection's
// conntrack entry. Otherwise a new SYN from the same port could count as part of the old connection.
func TestAConnectionThatIsOver(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	nodetest.Run(t, "sysctl", "-w", "net.netfilter.nf_conntrack_tcp_timeout_close=100")
	var l net.Listener
	nodetest.In(t, server.Netns, func() (err error) { l, err = net.Listen("tcp4", ":80"); return err })
	defer func() { _ = l.Close() }()
	for i, tc := range []struct {
		name, state string
		end         func(conn, accepted *net.TCPConn) error
	}{
		{"the server closes it", "TIME_WAIT", func(conn, accepted *net.TCPConn) error {
			err := accepted.Close()
			_, _ = conn.Read(make([]byte, 1)) // wait until the server's FIN has come
			return errors.Join(err, conn.Close())
		}},
		{"the server resets it", "CLOSE ", func(conn, accepted *net.TCPConn) error {
			err := errors.Join(accepted.SetLinger(0), accepted.Close())
			_, _ = conn.Read(make([]byte, 1))
			return errors.Join(err, conn.Close())
		}},
		{"the client resets it", "CLOSE ", func(conn, accepted *net.TCPConn) error {
			err := errors.Join(conn.SetLinger(0), conn.Close())
			_, _ = accepted.Read(make([]byte, 1))
			return errors.Join(err, accepted.Close())
		}},
	} {
		port := 40_000 + i
		// The parameter within must be long enough: if dial gives up, the server may later accept the abandoned
		// connection.
		dial := func(within time.Duration) (conn net.Conn, err error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: within, Control: reuseAddress}
			nodetest.In(t, client.Netns, func() error {
				conn, err = d.Dial("tcp4", server.IP+":80")
				return nil
			})
			return conn, err
		}
		entry := func() string {
			list, err := nodetest.Try("conntrack", "-L", "-p", "tcp", "--sport", fmt.Sprint(port))
			if err != nil {
				t.Fatal(list, err)
			}
			return list
		}
		n.Manifest("policy.yaml", "# none\n")
		for range 2 { // without a policy, the client may use the port again
			var conn net.Conn
			n.Eventually(tc.name+": the client connects", func() (err error) { conn, err = dial(30 * time.Second); return err })
			accepted, err := l.Accept()
			if err == nil {
				err = tc.end(conn.(*net.TCPConn), accepted.(*net.TCPConn))
			}
			if err != nil {
				t.Fatal(err)
			}
			n.Eventually(tc.name, func() error {
				if e := entry(); !strings.Contains(e, tc.state) {
					return errors.New(e)
				}
				return nil
			})
		}
		n.Manifest("policy.yaml", denyAll)
		n.Eventually(tc.name+": the entry is gone", func() error {
			if e := entry(); strings.Contains(e, "src=") {
				return errors.New(e)
			}
			return nil
		})
		if conn, err := dial(time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("%s: the client connects by its old port, although a policy forbids it", tc.name)
		}
	}
	if status, err := n.Ctl("status"); err != nil || !strings.Contains(status, " 0 connections cut") {
		t.Errorf("%v: connections that were over count as cut:\n%s", err, status)
	}
}

func reuseAddress(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, set)
}
