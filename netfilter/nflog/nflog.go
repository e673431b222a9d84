//go:build linux

// Package nflog reads the packets that the kernel copies to a netlink log group, for rules with the target NFLOG.
//
// It opens the socket with mdlayher/netlink, but parses the messages itself. That library allocates memory for each
// message and attribute, and so does florianl/go-nflog (BenchmarkParse).
//
// Invariants:
//   - The package knows nothing of policies. It owns no kernel object that outlives its socket.
//   - Each packet is read or counted as lost. The kernel numbers a group's packets, so a loss is noticed when a later
//     packet is read.
//   - Reading a packet copies nothing: a Packet consists of parts of the Reader's buffer.
//   - If another program already reads the group, Open returns an error. In a network namespace, a group has only one
//     reader.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// These constants are from include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0
	msgConfig = 1

	cfgCmd     = 1
	cfgMode    = 2
	cfgBufSize = 3
	cfgTimeout = 4
	cfgQThresh = 5
	cfgFlags   = 6

	cmdBind    = 1
	copyPacket = 2
	flagSeq    = 1
)

const (
	// headers is how many bytes of each packet the kernel copies: enough for an IPv6 header with extension headers, and
	// a TCP header with all options.
	headers = 128
	// messageSize is the size of the kernel's buffer for one message. The kernel allocates the buffer together with less
	// than 1 KiB of its own data, as contiguous memory. With 31 KiB, eight pages are enough for both. More contiguous
	// pages are rarely free.
	messageSize = 31 << 10
	// perMessage is the number of packets after which the kernel sends a message. No message has room for so many
	// packets, so the kernel sends full messages, and wakes the reader less often.
	perMessage = 1 << 10
	// collectFor is how long the kernel waits for more packets before it sends a message that isn't full.
	collectFor = 100 * time.Millisecond
	// answersWithin is how long the kernel may take to answer a configuration.
	answersWithin = 5 * time.Second
	// socketBuffer is the size of the socket's buffer in bytes. It has room for the packets of a tenth of a second, at
	// 100,000 packets per second.
	socketBuffer = 8 << 20
)

// Reader reads the packets of one group. Only one goroutine may call Read.
type Reader struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
	next uint32 // the number that the next packet should have
}

// Open starts to read the group. From then on, the kernel copies the first 128 bytes of each packet that a rule logs to
// the group.
//
// Equivalent to: tcpdump -i nflog:GROUP --snapshot-length=128
func Open(group uint16) (*Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a socket for log group %d: %w", group, err)
	}
	r, err := bind(conn, group)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read log group %d: %w", group, err), conn.Close())
	}
	return r, nil
}

func bind(conn *netlink.Conn, group uint16) (*Reader, error) {
	if err := conn.SetReadBuffer(socketBuffer); err != nil {
		return nil, err
	}
	config := netlink.NewAttributeEncoder()
	config.ByteOrder = binary.BigEndian
	config.Uint8(cfgCmd, cmdBind)
	config.Bytes(cfgMode, append(binary.BigEndian.AppendUint32(nil, headers), copyPacket, 0))
	config.Uint32(cfgBufSize, messageSize)
	config.Uint32(cfgTimeout, uint32(collectFor/(10*time.Millisecond))) // in hundredths of a second
	config.Uint32(cfgQThresh, perMessage)
	config.Uint16(cfgFlags, flagSeq)
	data, err := config.Encode()
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	_, err = conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, data...),
	})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Reader{conn: conn, raw: raw, buf: make([]byte, 2*messageSize)}
	err = r.acknowledged()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
		if pid := readerOf(group); pid != "" {
			return nil, fmt.Errorf("another program reads the log group (the reader's port number, mostly its process ID: %s): "+
				"%w", pid, err)
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// acknowledged waits for the kernel's answer to the configuration. The packets that come before the answer count as
// lost. The method reads the answer itself, because the function Execute of mdlayher/netlink can't skip such packets.
func (r *Reader) acknowledged() error {
	if err := r.conn.SetReadDeadline(time.Now().Add(answersWithin)); err != nil {
		return err
	}
	for {
		b, err := r.receive(true)
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		for kind, data := range messagesIn(b) {
			if kind == unix.NLMSG_ERROR && len(data) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(data)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			}
		}
	}
}

func (r *Reader) receive(wait bool) ([]byte, error) {
	var n int
	var failure error
	err := r.raw.Read(func(fd uintptr) bool {
		n, _, failure = unix.Recvfrom(int(fd), r.buf, 0)
		return !wait || !errors.Is(failure, unix.EAGAIN)
	})
	if err = errors.Join(err, failure); err != nil {
		return nil, err
	}
	return r.buf[:n], nil
}

func messagesIn(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(kind uint16, data []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size:size]) {
				return
			}
			b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

// readerOf returns the netlink port ID, usually a process ID, of the program that reads the group. The result is "" if
// no program is known to read the group.
//
// Equivalent to: awk '$1 == GROUP { print $2 }' /proc/net/netfilter/nfnetlink_log
func readerOf(group uint16) string {
	list, err := os.ReadFile("/proc/self/net/netfilter/nfnetlink_log")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == fmt.Sprint(group) {
			return f[1]
		}
	}
	return ""
}

// Close ends the reading of the group. A Read that waits also ends.
func (r *Reader) Close() error { return r.conn.Close() }

// Read waits for packets until ctx ends, but no longer than the duration wait. It passes every packet to the function
// each. A packet is valid until that function returns.
//
// lost is how many packets were lost before the last packet that Read has read. A later loss is counted by the next
// call, because only the next packet's number shows it.
func (r *Reader) Read(ctx context.Context, wait time.Duration, each func(*Packet)) (lost uint64, err error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = r.conn.SetReadDeadline(time.Unix(1, 0)) })()
	var p Packet
	// The number of messages is limited, because the caller also has other work.
	for first, left := true, socketBuffer/messageSize; left > 0; left-- {
		b, err := r.receive(first)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
			return lost, nil
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			continue // the next packet's number shows how many packets were lost
		case err != nil:
			return lost, fmt.Errorf("read the log group: %w", err)
		}
		first = false
		lost += r.packets(b, &p, each)
	}
	return lost, nil
}

func (r *Reader) packets(b []byte, p *Packet, each func(*Packet)) (lost uint64) {
	for kind, data := range messagesIn(b) {
		if kind != unix.NFNL_SUBSYS_ULOG<<8|msgPacket || !p.parse(data) {
			continue
		}
		lost += uint64(p.number - r.next) // numbers begin at 0, and continue with 0 after the highest number
		r.next = p.number + 1
		each(p)
	}
	return lost
}
