// Package batch sends several netlink requests with one system call (Batch), and reads long lists without keeping them
// in memory (Dumper). This makes ADD faster, because system calls and new memory take most of its time.
//
// Invariants:
//   - Do succeeds only if the kernel has acknowledged the last request, and has reported no error except those that
//     MapError ignores.
//   - If a list changes while it is read, the reading fails. A part of a list never counts as the whole list.
//   - The memory of a Dumper doesn't grow with the list.
//   - A thread that can't return to its own network namespace runs no other goroutine.
package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Batch is a list of netlink requests that are sent together. The kernel handles them in order, and continues after a
// request that fails. It reports errors of all requests, but acknowledges only the last request (netlink_rcv_skb in
// net/netlink/af_netlink.c). Only the last request may ask for a list.
type Batch []*Step

type Step struct {
	request *nl.NetlinkRequest
	format  string // format and args say what the request does
	args    []any
	// MapError, if not nil, replaces the kernel's error. It returns nil to ignore the error.
	MapError func(error) error
}

// Add appends the request, which must not have the flag NLM_F_ACK. Errors about the request begin with a text: doing is
// its format, and args are its parameters, as in fmt.Sprintf. The text is made only after an error, so args must not
// change until then.
func (b *Batch) Add(r *nl.NetlinkRequest, doing string, args ...any) *Step {
	s := &Step{request: r, format: doing, args: args}
	*b = append(*b, s)
	return s
}

func (s *Step) doing() string { return fmt.Sprintf(s.format, s.args...) }

// MapError returns a function for Step.MapError. The function replaces one error by another, or by nil.
func MapError(from, to error) func(error) error {
	return func(err error) error {
		if errors.Is(err, from) {
			return to
		}
		return err
	}
}

var (
	// ErrNoAnswer means that the kernel's answer is missing or malformed. For instance, the socket's buffer was full.
	ErrNoAnswer = errors.New("the kernel doesn't answer")
	errChanged  = errors.New("the list changed while it was read")
)

// largestReply is larger than the kernel's largest reply about one link.
const largestReply = 32 << 10

// Do sends the requests in the network namespace; netns.None() means the caller's own. It returns the replies, or the
// error of the first request that fails. protocol is one of netlink(7), such as NETLINK_ROUTE.
func (b Batch) Do(protocol int, ns netns.NsHandle) (replies [][]byte, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	fd, err := socketIn(protocol, ns)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return b.do(fd, make([]byte, largestReply))
}

func (b Batch) do(fd int, buf []byte) (replies [][]byte, err error) {
	var all []byte
	for i, st := range b {
		st.request.Seq = uint32(i)
		if i == len(b)-1 {
			st.request.Flags |= unix.NLM_F_ACK
		}
		msg := st.request.Serialize()
		all = append(append(all, msg...), make([]byte, -len(msg)&(unix.NLMSG_ALIGNTO-1))...)
	}
	if err := unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("%s: %w", b[0].doing(), err)
	}
	// All replies are in the socket's buffer when Sendto returns, so Recvfrom needn't wait.
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", b[0].doing(), ErrNoAnswer, err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b[0].doing(), err)
		}
		for _, m := range msgs {
			switch {
			case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
				return nil, fmt.Errorf("%s: %w", b[len(b)-1].doing(), errChanged)
			case m.Header.Type != unix.NLMSG_ERROR && m.Header.Type != unix.NLMSG_DONE:
				replies = append(replies, append([]byte(nil), m.Data...))
				continue
			}
			if err := b.failed(m); err != nil {
				return nil, err
			}
			if int(m.Header.Seq) == len(b)-1 {
				return replies, nil
			}
		}
	}
}

// socketIn opens a netlink socket in the namespace. If the thread can't return to its own namespace, the thread stays
// locked, so that Go runs no other goroutine in the wrong namespace.
func socketIn(protocol int, ns netns.NsHandle) (fd int, err error) {
	openSocket := func() (int, error) {
		return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	}
	if !ns.IsOpen() {
		return openSocket()
	}
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	defer func() { _ = own.Close() }()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	fd, err = openSocket()
	if back := netns.Set(own); back != nil {
		return -1, errors.Join(err, back, unix.Close(fd))
	}
	runtime.UnlockOSThread()
	return fd, err
}

func (b Batch) failed(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 || int(m.Header.Seq) >= len(b) {
		return ErrNoAnswer
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	st := b[m.Header.Seq]
	var err error = unix.Errno(-code)
	if st.MapError != nil {
		err = st.MapError(err)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", st.doing(), err)
}
