// Package batch has the kernel do several things with one system call. ADD is on the path of every pod's start, and what it
// costs are system calls and memory that wasn't touched before: the netlink library, which the requests are made with, takes
// some four calls and 64 KB of stack for each of them.
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

// Batch is a row of netlink requests that are sent together. The kernel does them in order, goes on after one that has
// failed, and acknowledges the last and whatever fails (netlink_rcv_skb, net/netlink/af_netlink.c). Only the last may be one
// that asks for a list.
type Batch []*Step

// Step is a request, and what it does in words.
type Step struct {
	request *nl.NetlinkRequest
	doing   string
	// Means says what the kernel's error means, if not what it says; nil: nothing.
	MapError func(error) error
}

// Add puts the request, made without NLM_F_ACK, at the end.
func (b *Batch) Add(r *nl.NetlinkRequest, doing string, args ...any) *Step {
	s := &Step{request: r, doing: fmt.Sprintf(doing, args...)}
	*b = append(*b, s)
	return s
}

// As has an error of the kernel's mean another.
func MapError(kernels, other error) func(error) error {
	return func(err error) error {
		if errors.Is(err, kernels) {
			return other
		}
		return err
	}
}

var (
	// ErrNoAnswer says that the kernel had no room for its answer, or has given another than it should.
	ErrNoAnswer = errors.New("the kernel doesn't answer")
	// errChanged says that what was being listed changed meanwhile.
	errChanged = errors.New("the list changed while it was read")
)

// largestReply is more than any of the kernel's on one link, in bytes.
const largestReply = 32 << 10

// Do has the kernel do all of it in the namespace, or the caller's own if that is netns.None(), and returns the replies that
// are no acknowledgements, without their headers. The error is that of the first step that fails. protocol is one of
// netlink(7), such as NETLINK_ROUTE.
func (b Batch) Do(protocol int, ns netns.NsHandle) (replies [][]byte, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	fd, err := openIn(protocol, ns)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
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
		return nil, fmt.Errorf("%s: %w", b[0].doing, err)
	}
	// The kernel has done its work, and put its replies into the socket, before the call returns.
	buf := make([]byte, largestReply)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", b[0].doing, ErrNoAnswer, err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b[0].doing, err)
		}
		for _, m := range msgs {
			switch {
			case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
				return nil, fmt.Errorf("%s: %w", b[len(b)-1].doing, errChanged)
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

// openIn opens a socket in the namespace. Where the thread can't go back it is never used again.
func openIn(protocol int, ns netns.NsHandle) (fd int, err error) {
	open := func() (int, error) {
		return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	}
	if !ns.IsOpen() {
		return open()
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
	fd, err = open()
	if back := netns.Set(own); back != nil {
		return -1, errors.Join(err, back, unix.Close(fd))
	}
	runtime.UnlockOSThread()
	return fd, err
}

// failed is what a message of type NLMSG_ERROR, or NLMSG_DONE at a list's end, says: nothing, if all went well (RFC 3549,
// section 2.3.2.2).
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
	return fmt.Errorf("%s: %w", st.doing, err)
}
