//go:build bench

package bench_test

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// traffic is one kind of measured traffic. A client thread sends it to a server thread on the same core.
type traffic struct {
	name   string
	batch  int
	client func(*packetNode) (once func() error, end func() error, err error)
	server func(*packetNode) error
}

var (
	connections = traffic{"new connections", 20, (*packetNode).connect, (*packetNode).accept}
	// Unanswered packets are datagrams of one flow, such as those to statsd.
	unanswered = traffic{"unanswered UDP packets", 100, datagram(false), (*packetNode).receive}
	answered   = traffic{"answered UDP packets", 50, datagram(true), (*packetNode).answer}
	stream     = traffic{"TCP stream", 10, (*packetNode).write64K, (*packetNode).readAll}
)

const core = 1

const warmUp = 2

// measure repeats the traffic k until the processor time reaches atLeast. It returns the average processor time of one
// repetition, such as one connection or one packet. The time includes the kernel's forwarding, which happens in the
// sender's system call. On a very busy machine, measure may fail, because a packet is lost.
func (n *packetNode) measure(t *testing.T, k traffic, atLeast time.Duration) (took time.Duration, err error) {
	t.Helper()
	nodetest.In(t, n.path, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	var clientEnded, ended atomic.Bool
	others := []*worker{work(&clientEnded, func() error { return k.server(n) })}
	if n.queue != nil {
		others = append(others, work(&ended, n.queue.accept))
	}
	nodetest.In(t, n.client, func() error {
		took, err = n.send(k, atLeast, others, &clientEnded)
		return nil
	})
	ended.Store(true)
	for _, w := range others {
		if failed := <-w.done; failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: server: %w", k.name, failed))
		}
	}
	return took, err
}

func (n *packetNode) send(
	k traffic, atLeast time.Duration, others []*worker, ended *atomic.Bool,
) (took time.Duration, err error) {
	defer ended.Store(true)
	unpin, err := pin()
	if err != nil {
		return 0, err
	}
	defer unpin()
	once, end, err := k.client(n)
	if err != nil {
		return 0, err
	}
	var began time.Duration
	batches := -warmUp
	for ; batches <= 0 || processorTime(others)-began < atLeast; batches++ {
		if batches == 0 {
			began = processorTime(others)
		}
		for range k.batch {
			if err := once(); err != nil {
				ended.Store(true)
				return 0, errors.Join(fmt.Errorf("%s: %w", k.name, err), end())
			}
		}
	}
	took = (processorTime(others) - began) / time.Duration(batches*k.batch)
	ended.Store(true)
	return took, end()
}

// pin keeps the calling goroutine on its thread, and the thread on the core.
func pin() (unpin func(), err error) {
	var everywhere, here unix.CPUSet
	here.Set(core)
	runtime.LockOSThread()
	if err := errors.Join(unix.SchedGetaffinity(0, &everywhere), unix.SchedSetaffinity(0, &here)); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &everywhere)
		runtime.UnlockOSThread()
	}, nil
}

type worker struct {
	clock int32 // ID of the clock that counts the thread's processor time
	done  chan error
}

func work(ended *atomic.Bool, once func() error) *worker {
	w := &worker{done: make(chan error, 1)}
	started := make(chan error)
	go func() {
		unpin, err := pin()
		w.clock = int32(^unix.Gettid()<<3 | 6) // CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED
		if started <- err; err != nil {
			return
		}
		defer unpin()
		for err == nil && !ended.Load() {
			err = once()
		}
		w.done <- err
	}()
	if err := <-started; err != nil {
		w.done <- err
	}
	return w
}

func processorTime(workers []*worker) time.Duration {
	sum := clock(unix.CLOCK_THREAD_CPUTIME_ID)
	for _, w := range workers {
		sum += clock(w.clock)
	}
	return sum
}

func clock(id int32) time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts) // never fails: the clock exists as long as the thread
	return time.Duration(ts.Nano())
}

func webServer() *unix.RawSockaddrInet4 {
	return &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 80 << 8, Addr: serverAddr.As4()}
}

// quiet returns nil for a timeout, so that the worker checks whether the client has ended. It returns any other error.
func quiet(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

func (n *packetNode) connect() (once, end func() error, err error) {
	to := webServer()
	once = func() error {
		fd, err := newSocket(unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		if err := connectTo(fd, to); err != nil {
			return err
		}
		return closeFD(fd)
	}
	return once, once, nil
}

func (n *packetNode) accept() error {
	fd, err := acceptFrom(n.listener)
	if err != nil {
		return quiet(err)
	}
	return closeFD(fd)
}

func datagram(answer bool) func(*packetNode) (once, end func() error, err error) {
	return func(*packetNode) (once, end func() error, err error) {
		fd, err := boundSocket(unix.SOCK_DGRAM, clientAddr, 0, lost)
		if err != nil {
			return nil, nil, err
		}
		if err := connectTo(fd, webServer()); err != nil {
			return nil, nil, err
		}
		out, in := make([]byte, 32), make([]byte, 64)
		once = func() error {
			_, err := write(fd, out)
			if err == nil && answer {
				_, err = read(fd, in)
			}
			if err == nil && !answer {
				_, err = call("sched_yield", unix.SYS_SCHED_YIELD)
			}
			return err
		}
		return once, func() error {
			_, err := write(fd, out)
			return errors.Join(err, closeFD(fd))
		}, nil
	}
}

func (n *packetNode) receive() error {
	_, err := read(n.datagrams, n.buf)
	return quiet(err)
}

func (n *packetNode) answer() error { return quiet(echo(n.datagrams, n.buf)) }

func (n *packetNode) write64K() (once, end func() error, err error) {
	fd, err := newSocket(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, err
	}
	if err := connectTo(fd, webServer()); err != nil {
		return nil, nil, err
	}
	data := make([]byte, 64<<10)
	once = func() error {
		for sent := 0; sent < len(data); {
			k, err := write(fd, data[sent:])
			if err != nil {
				return err
			}
			sent += k
		}
		return nil
	}
	return once, func() error { return closeFD(fd) }, nil
}

func (n *packetNode) readAll() error {
	fd, err := acceptFrom(n.listener)
	if err != nil {
		return quiet(err)
	}
	for err == nil {
		var k int
		if k, err = read(fd, n.buf); k == 0 && err == nil {
			break
		}
		err = quiet(err)
	}
	return errors.Join(err, closeFD(fd))
}
