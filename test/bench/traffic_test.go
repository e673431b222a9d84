//go:build bench

package bench_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// traffic is a kind of traffic between the client and the server.
type traffic struct {
	name string
	// batch is how many times the traffic is repeated between two looks at the clock.
	batch int
	begin func(*packetNode) (once func() error, end func(), err error)
}

// The kinds. The time of each is the processor time of one thread that is client and server at once and stays on one
// core: the kernel carries each packet to the other pod within the system call that sends it.
var (
	// connections is new connections: the client connects, the server accepts, and both close.
	connections = traffic{"new connections", 20, (*packetNode).connect}
	// unanswered is datagrams of one flow that nobody answers, like those to statsd. The server reads each.
	unanswered = traffic{"unanswered UDP packets", 100, datagram(false)}
	// answered is datagrams of one flow with an answer to each.
	answered = traffic{"answered UDP packets", 50, datagram(true)}
	// stream is bytes of one TCP connection, in writes of 64 KiB.
	stream = traffic{"TCP stream", 10, (*packetNode).stream}
)

// core is the core that the measuring thread stays on.
const core = 1

// warmUp is how many batches of a measurement aren't counted.
const warmUp = 2

// measure repeats the traffic for the time and returns the processor time of one repetition. No connection is known at
// the beginning.
func (n *packetNode) measure(t *testing.T, k traffic, atLeast time.Duration) (took time.Duration) {
	t.Helper()
	nodetest.In(t, n.path, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	nodetest.In(t, n.client, func() error {
		var everywhere, here unix.CPUSet
		if err := unix.SchedGetaffinity(0, &everywhere); err != nil {
			return err
		}
		here.Set(core)
		if err := unix.SchedSetaffinity(0, &here); err != nil {
			return err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &everywhere) }()
		once, end, err := k.begin(n)
		if err != nil {
			return err
		}
		defer end()
		var began time.Duration
		batches := -warmUp
		for ; batches <= 0 || threadTime()-began < atLeast; batches++ {
			if batches == 0 {
				began = threadTime()
			}
			for range k.batch {
				if err := once(); err != nil {
					return fmt.Errorf("%s: %w", k.name, err)
				}
			}
		}
		took = (threadTime() - began) / time.Duration(batches*k.batch)
		return nil
	})
	return took
}

// threadTime returns the processor time of the calling thread, including the time in which the kernel forwards its
// packets.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // the clock always exists
	return time.Duration(ts.Nano())
}

// await calls f until it returns another error than EAGAIN, and waits in between until the socket can be read. A packet
// may take a moment longer if the kernel hands it to another thread.
func await(fd int, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if err == nil && ready == 0 {
			return errors.New("no packet arrives")
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

var server = &unix.SockaddrInet4{Addr: serverAddr.As4(), Port: 80}

func (n *packetNode) connect() (once func() error, end func(), err error) {
	return func() error {
		client, accepted, err := n.dial()
		if err != nil {
			return err
		}
		return errors.Join(unix.Close(accepted), unix.Close(client))
	}, func() {}, nil
}

// dial returns both ends of a new connection.
func (n *packetNode) dial() (client, accepted int, err error) {
	client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(client, server); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return 0, 0, err
	}
	if err := n.judge(); err != nil {
		return 0, 0, err
	}
	err = await(n.listener, func() (err error) {
		accepted, _, err = unix.Accept4(n.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err
	})
	return client, accepted, err
}

// judge answers for the first packet of a connection if the rules ask a program about it.
func (n *packetNode) judge() error {
	if n.queue == nil {
		return nil
	}
	return await(n.queue.fd, n.queue.accept)
}

func datagram(answer bool) func(*packetNode) (func() error, func(), error) {
	return func(n *packetNode) (once func() error, end func(), err error) {
		client, err := boundSocket(unix.SOCK_DGRAM, clientAddr, 0)
		if err != nil {
			return nil, nil, err
		}
		end = func() { _ = unix.Close(client) }
		if err := unix.Connect(client, server); err != nil {
			return nil, end, err
		}
		buf, from, name := make([]byte, 64), unix.Sockaddr(nil), make([]byte, 32)
		if own, err := unix.Getsockname(client); err == nil {
			from = own
		}
		read := func(fd int) error {
			return await(fd, func() error { _, err := unix.Read(fd, buf); return err })
		}
		first := true
		return func() error {
			if _, err := unix.Write(client, name); err != nil {
				return err
			}
			if first || !answer {
				if err := n.judge(); err != nil {
					return err
				}
			}
			first = false
			if err := read(n.datagrams); err != nil || !answer {
				return err
			}
			if err := unix.Sendto(n.datagrams, name, 0, from); err != nil {
				return err
			}
			return read(client)
		}, end, nil
	}
}

func (n *packetNode) stream() (once func() error, end func(), err error) {
	client, accepted, err := n.dial()
	if err != nil {
		return nil, nil, err
	}
	end = func() { _, _ = unix.Close(accepted), unix.Close(client) }
	data, buf := make([]byte, 64<<10), make([]byte, 64<<10)
	return func() error {
		for sent := 0; sent < len(data); {
			k, err := unix.Write(client, data[sent:])
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				return err
			}
			for got := 0; got < k; {
				if err := await(accepted, func() error {
					r, err := unix.Read(accepted, buf)
					got += max(r, 0)
					return err
				}); err != nil {
					return err
				}
			}
			sent += max(k, 0)
		}
		return nil
	}, end, nil
}
