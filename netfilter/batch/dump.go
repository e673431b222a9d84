package batch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Dumper asks the kernel for lists, one after the other, and passes each message of a list to a function. It keeps no
// message, so its memory doesn't grow with the list. Only one goroutine may use it.
type Dumper struct {
	protocol int
	strict   bool
	fd       int // the open socket, or -1
	buf      []byte
}

// NewDumper returns a Dumper for one protocol of netlink(7), such as NETLINK_ROUTE. The caller must call Close.
func NewDumper(protocol int) *Dumper { return &Dumper{protocol: protocol, fd: -1} }

// NewStrictDumper returns a Dumper with the option NETLINK_GET_STRICT_CHK (since Linux 4.20): the kernel refuses
// requests with unknown attributes. Without this option, the kernel ignores all attributes of some requests.
func NewStrictDumper(protocol int) *Dumper { return &Dumper{protocol: protocol, strict: true, fd: -1} }

// Close closes the socket. A later Dump opens another socket.
func (d *Dumper) Close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// largestAnswer is larger than the kernel's largest answer with several messages (32 KiB; netlink_dump in
// net/netlink/af_netlink.c).
const largestAnswer = 64 << 10

// Dump sends the request, which must ask for a list, and calls each(msg) for every message of the list. A message is
// valid until each() returns. If each() returns false, Dump ends without an error. If the list changed while the
// kernel wrote it, Dump returns nl.ErrDumpInterrupted.
func (d *Dumper) Dump(req *nl.NetlinkRequest, each func(msg []byte) bool) error {
	if err := d.open(); err != nil {
		return err
	}
	// If a part of the list is still in the socket, no other request can use the socket, so Dump closes the socket.
	whole := false
	defer func() {
		if !whole {
			d.Close()
		}
	}()
	if err := unix.Sendto(d.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, flags, err := d.receive()
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case flags&unix.MSG_TRUNC != 0:
			return errors.New("the kernel's answer is too long")
		}
		end, err := split(d.buf[:n], req.Seq, each)
		if end != 0 || err != nil {
			whole = end == atEnd && err == nil
			return err
		}
	}
}

// Do sends the requests like Batch.Do, through the Dumper's socket.
func (d *Dumper) Do(b Batch) (replies [][]byte, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if replies, err = b.do(d.fd, d.buf); err != nil {
		d.Close() // the socket may have more answers, so it can't be used again
	}
	return replies, err
}

func (d *Dumper) open() (err error) {
	if d.fd >= 0 {
		return nil
	}
	if d.buf == nil {
		d.buf = make([]byte, largestAnswer)
	}
	d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, d.protocol)
	if err != nil {
		d.fd = -1
		return err
	}
	err = unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &nl.SocketTimeoutTv)
	if err == nil && d.strict {
		err = unix.SetsockoptInt(d.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	}
	if err != nil {
		d.Close()
	}
	return err
}

func (d *Dumper) receive() (n, flags int, err error) {
	for {
		n, _, flags, from, err := unix.RecvmsgBuffers(d.fd, [][]byte{d.buf}, nil, 0)
		if sender, ok := from.(*unix.SockaddrNetlink); err != nil || (ok && sender.Pid == 0) {
			return n, flags, err
		}
	}
}

const (
	more = iota
	atEnd
	enough
)

func split(answer []byte, seq uint32, each func(msg []byte) bool) (end int, err error) {
	for len(answer) >= unix.SizeofNlMsghdr {
		size, kind := int(binary.NativeEndian.Uint32(answer)), binary.NativeEndian.Uint16(answer[4:])
		if size < unix.SizeofNlMsghdr || size > len(answer) {
			break
		}
		flags, its := binary.NativeEndian.Uint16(answer[6:]), binary.NativeEndian.Uint32(answer[8:])
		msg := answer[unix.SizeofNlMsghdr:size]
		answer = answer[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(answer)):]
		switch {
		case its != seq:
			return more, fmt.Errorf("the kernel's answer has the number %d, not %d", its, seq)
		case flags&unix.NLM_F_DUMP_INTR != 0:
			return more, nl.ErrDumpInterrupted
		case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
			if len(msg) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(msg)); code != 0 {
					return atEnd, unix.Errno(-code)
				}
			}
			return atEnd, nil
		case !each(msg):
			return enough, nil
		}
	}
	if len(answer) > 0 {
		return more, errors.New("the kernel's answer is incomplete")
	}
	return more, nil
}
