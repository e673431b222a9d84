package packettest

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

const (
	// late is how long Send waits at most for packets that should arrive.
	late = 20 * time.Second
	// silence is how long Send waits after the last arrival, for packets that should not arrive. This is long enough,
	// because the kernel delivers a packet within the system call that sends it.
	silence = 30 * time.Millisecond
)

type receiver struct {
	proto  ruleset.Protocol
	family int
}

type flight struct {
	epoll   int
	packets []verdict.Packet
	clients map[int]int // for each client socket of TCP or UDP, the index of its packet
	first   uint32      // the number in the payload of the first packet
	arrived []bool
}

// Send sends all packets at once, and returns which of them have arrived. A TCP or UDP packet has arrived if it was
// answered or refused. expect is true for each packet that should arrive, and decides only how long Send waits.
func (n *Node) Send(packets []verdict.Packet, expect []bool) []bool {
	n.Helper()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		n.Fatal(err)
	}
	f := &flight{
		epoll:   epoll,
		packets: packets,
		clients: map[int]int{},
		first:   n.last + 1,
		arrived: make([]bool, len(packets)),
	}
	defer f.close()
	n.last += uint32(len(packets))
	receivers := map[int]receiver{}
	for _, h := range n.hosts {
		for proto, fd := range h.raw {
			receivers[fd] = receiver{proto, family(h.addr)}
			f.drain(fd, receivers[fd]) // discards late packets of an earlier call of Send
			f.watch(n, fd, unix.EPOLLIN)
		}
	}
	bySource := map[netip.Addr][]int{}
	for i, p := range packets {
		bySource[p.Src] = append(bySource[p.Src], i)
	}
	for src, list := range bySource {
		h := n.hosts[src]
		nodetest.In(n, h.netns, func() error {
			for _, i := range list {
				if err := f.send(n, h, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	sent := time.Now()
	for quiet := sent; ; {
		wait := silence - time.Since(quiet)
		if f.missing(expect) {
			wait = late - time.Since(sent)
		}
		if wait <= 0 {
			return f.arrived
		}
		if f.receive(n, receivers, wait) {
			quiet = time.Now()
		}
	}
}

func (f *flight) close() {
	for fd := range f.clients {
		_ = unix.Close(fd)
	}
	_ = unix.Close(f.epoll)
}

func (f *flight) missing(expect []bool) bool {
	for i, want := range expect {
		if want && !f.arrived[i] {
			return true
		}
	}
	return false
}

func (f *flight) watch(n *Node, fd int, events uint32) {
	n.Helper()
	if err := unix.EpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		n.Fatal(err)
	}
}

func (f *flight) send(n *Node, h *host, i int) error {
	p := f.packets[i]
	number := f.first + uint32(i)
	if fd, ok := h.raw[p.Proto]; ok {
		return unix.Sendto(fd, payload(p, number), 0, sockaddr(p.Dst, 0))
	}
	kind := unix.SOCK_STREAM
	if p.Proto == ruleset.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family(p.Src), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.clients[fd] = i
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, h.mark); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(p.Src, 0)); err != nil {
		return err
	}
	if p.Proto == ruleset.UDP {
		if err := unix.Connect(fd, sockaddr(p.Dst, p.Port)); err != nil {
			return err
		}
		if _, err := unix.Write(fd, payload(p, number)); err != nil {
			return err
		}
		f.watch(n, fd, unix.EPOLLIN)
		return nil
	}
	// With this option, closing the socket resets the connection, so that no socket stays in the state TIME_WAIT.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(p.Dst, p.Port)); errors.Is(err, unix.ECONNREFUSED) {
		f.arrived[i] = true // the host has sent to itself, and the kernel refused at once
		return nil
	} else if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	f.watch(n, fd, unix.EPOLLOUT)
	return nil
}

func (f *flight) receive(n *Node, receivers map[int]receiver, wait time.Duration) bool {
	n.Helper()
	events := make([]unix.EpollEvent, 256)
	k, err := unix.EpollWait(f.epoll, events, int(wait.Milliseconds())+1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		n.Fatal(err)
	}
	for _, e := range events[:max(k, 0)] {
		fd := int(e.Fd)
		if r, ok := receivers[fd]; ok {
			f.drain(fd, r)
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			n.Fatal(err)
		}
		// If the host has no server on the port, it refuses or resets the connection. Then the packet has arrived. Any
		// other error means that it has not.
		f.arrived[f.clients[fd]] = code == 0 || unix.Errno(code) == unix.ECONNREFUSED || unix.Errno(code) == unix.ECONNRESET
		if err := unix.EpollCtl(f.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
			n.Fatal(err)
		}
	}
	return k > 0
}

func (f *flight) drain(fd int, r receiver) {
	buf := make([]byte, 2048)
	for {
		k, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return
		}
		if i := numberOf(r, buf[:k]) - f.first; i < uint32(len(f.arrived)) {
			f.arrived[i] = true
		}
	}
}
