//go:build takeover

package takeover_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// patience is how long an allowed packet's answer may take on a busy machine. TCP repeats a dropped packet within this
// time, but no program repeats a datagram. So datagrams show that not even one packet was dropped.
const patience = 10 * time.Second

// pause is the time between two attempts of a flow. It leaves the cores to other flows, and keeps the number of
// connections that the kernel tracks small.
const pause = 10 * time.Millisecond

// traffic has flows of packets. If a packet of a flow gets the wrong verdict, the test fails.
type traffic struct {
	flows []*flow
	wg    sync.WaitGroup
	over  atomic.Bool
}

type flow struct {
	name     string
	attempts atomic.Int64
}

func (tr *traffic) runs(t testing.TB, name string, attempt func() error) {
	f := &flow{name: name}
	tr.flows = append(tr.flows, f)
	tr.wg.Go(func() {
		for !tr.over.Load() {
			if err := attempt(); err != nil {
				t.Errorf("%s: attempt %d: %v", name, f.attempts.Load(), err)
				return
			}
			f.attempts.Add(1)
			time.Sleep(pause)
		}
	})
}

func dial(t testing.TB, netns, network, address string, timeout time.Duration) (conn net.Conn, err error) {
	nodetest.In(t, netns, func() error {
		conn, err = net.DialTimeout(network, address, timeout)
		return nil
	})
	return conn, err
}

// mayReach starts flows that the policies allow: TCP connections to port 80, and UDP to port 53, in both families.
func (tr *traffic) mayReach(t testing.TB, from, to *nodetest.Pod) {
	for _, host := range []string{to.IP, "[" + to.IP6 + "]"} {
		tr.connects(t, from.Netns, host+":80")
		tr.asks(t, from.Netns, host+":53")
	}
}

func (tr *traffic) connects(t testing.TB, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" connects to "+address, func() error {
		conn, err := dial(t, netns, "tcp", address, patience)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// never adds a flow of attempts to connect over TCP. If any attempt succeeds, the test fails.
func (tr *traffic) never(t testing.TB, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" never connects to "+address, func() error {
		conn, err := dial(t, netns, "tcp", address, 30*time.Millisecond)
		if err != nil {
			return nil //nolint:nilerr // no connection may be established, so an error is right
		}
		return errors.Join(errors.New("it is connected"), conn.Close())
	})
}

// asks adds a flow of new UDP connections. If the first datagram of any connection gets no answer, the test fails.
func (tr *traffic) asks(t testing.TB, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" asks "+address, func() error {
		conn, err := dial(t, netns, "udp", address, patience)
		if err != nil {
			return err
		}
		return errors.Join(answered(conn), conn.Close())
	})
}

// keeps adds a flow over one connection, which stays open. If any message gets no answer, the test fails.
func (tr *traffic) keeps(t testing.TB, netns, network, address string) {
	t.Helper()
	conn, err := dial(t, netns, network, address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if network == "tcp" {
		if _, err := conn.Read(make([]byte, 100)); err != nil { // the server's greeting
			t.Fatal(err)
		}
	}
	tr.runs(t, filepath.Base(netns)+" stays connected to "+network+" "+address, func() error { return answered(conn) })
}

func answered(conn net.Conn) error {
	message := []byte("packets of one connection")
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer := make([]byte, len(message))
	_, err := io.ReadFull(conn, answer)
	if err == nil && !bytes.Equal(answer, message) {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return err
}

// sends adds a flow of datagrams that no policy allows. Each datagram is the first packet of a connection. The server
// counts the datagrams that arrive.
func (tr *traffic) sends(t testing.TB, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" sends to "+address, func() error {
		conn, err := dial(t, netns, "udp", address, patience)
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("no policy allows this datagram"))
		return errors.Join(err, conn.Close())
	})
}

// echoes runs a UDP server until the test ends. The server answers datagrams, except those from addresses for which
// the function isWrong returns true.
func (tr *traffic) echoes(t testing.TB, netns, address string, isWrong func(netip.Addr) bool) {
	t.Helper()
	nodetest.In(t, netns, func() error {
		conn, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				k, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				if !isWrong(from.(*net.UDPAddr).AddrPort().Addr().Unmap()) {
					_, _ = conn.WriteTo(buf[:k], from)
				}
			}
		}()
		return nil
	})
}

func (tr *traffic) waitForMore(t testing.TB) {
	t.Helper()
	was := make([]int64, len(tr.flows))
	for i, f := range tr.flows {
		was[i] = f.attempts.Load()
	}
	deadline := time.Now().Add(time.Minute)
	for i, f := range tr.flows {
		for f.attempts.Load() < was[i]+20 {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no attempts any more", f.name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (tr *traffic) end() {
	tr.over.Store(true)
	tr.wg.Wait()
}

func (tr *traffic) stop(t testing.TB) {
	t.Helper()
	tr.end()
	var all int64
	for _, f := range tr.flows {
		all += f.attempts.Load()
	}
	t.Logf("%d flows, %d attempts", len(tr.flows), all)
}
