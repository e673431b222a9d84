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
	// late is how long a packet that should arrive is waited for: much longer than it ever takes.
	late = 3 * time.Second
	// silence is how long packets that should not arrive are waited for, once all others have. The kernel carries a
	// packet from namespace to namespace while it is sent, so they would have come before.
	silence = 30 * time.Millisecond
)

// receiver is what a raw socket sees.
type receiver struct {
	proto  ruleset.Protocol
	family int
}

// flight is a number of packets on their way.
type flight struct {
	epoll   int
	packets []verdict.Packet
	clients map[int]int // sockets of TCP and UDP clients, and which packet each has sent
	first   uint32      // number of the first packet
	arrived []bool
}

// Send sends the packets all at once and says which arrived. TCP's and UDP's count when they were answered, so that the
// way back is open too. expect says which should arrive: it decides how long to wait, not what is said.
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
			f.drain(fd, receivers[fd]) // what another flight left
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

// send is called in the source's namespace.
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
	// The end of a connection leaves nothing behind.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(p.Dst, p.Port)); errors.Is(err, unix.ECONNREFUSED) {
		f.arrived[i] = true // by the host's own loopback
		return nil
	} else if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	f.watch(n, fd, unix.EPOLLOUT)
	return nil
}

// receive waits for what comes, and says whether anything did.
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
		// Refused or reset by who listens not: the packet was there. Anything else means that it wasn't.
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
