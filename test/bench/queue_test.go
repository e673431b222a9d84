//go:build bench

package bench_test

import (
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

const queueNumber = 100

// headersOfPackets is how many bytes of each packet the kernel copies to the queue.
const headersOfPackets = 128

// queue accepts the first packet of each connection in user space. A real program would also look up policies.
type queue struct {
	fd      int
	buf     []byte
	verdict []byte // the message that accepts a packet; its last four bytes are the packet's number
}

func newQueue(t testing.TB, netns string) *queue {
	t.Helper()
	q := nodetest.OpenQueue(t, netns, queueNumber, headersOfPackets)
	if err := setWait(q.FD, idle); err != nil {
		t.Fatal(err)
	}
	return &queue{q.FD, make([]byte, 4096), q.Verdict(0)}
}

func (q *queue) accept() error {
	k, err := read(q.fd, q.buf)
	if err != nil {
		return quiet(err)
	}
	const head = unix.NLMSG_HDRLEN + nl.SizeofNfgenmsg
	for rest := q.buf[head:k]; len(rest) >= unix.NLA_HDRLEN; {
		size, kind := binary.NativeEndian.Uint16(rest), binary.NativeEndian.Uint16(rest[2:])
		if kind == nodetest.QueuedPacket {
			copy(q.verdict[len(q.verdict)-4:], rest[unix.NLA_HDRLEN:])
			_, err := write(q.fd, q.verdict)
			return err
		}
		rest = rest[min(len(rest), (int(size)+3)&^3):]
	}
	return nil
}
