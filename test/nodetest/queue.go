package nodetest

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Queue gets the packets that rules with the target NFQUEUE send to it. It stands for a program that checks packets
// itself. The kernel holds each packet until Queue accepts it.
type Queue struct {
	FD     int // a netlink socket
	number uint16
}

// QueuedPacket is the type of the attribute that begins with the packet's number (NFQA_PACKET_HDR).
const QueuedPacket = 1

// These constants are from linux/netfilter/nfnetlink.h (the subsystem) and nfnetlink_queue.h.
const (
	nfqnlSubsystem  = 3
	nfqnlMsgVerdict = 1
	nfqnlMsgConfig  = 2
	nfqaVerdictHdr  = 2
	nfqaCfgCmd      = 1
	nfqaCfgParams   = 2
	nfqnlCfgCmdBind = 1
	nfqnlCopyPacket = 2
)

// OpenQueue opens the queue in the network namespace of the path. The kernel copies up to size bytes of each packet to
// it. At the end of the test, the queue is closed, and the kernel drops the packets that it still holds.
func OpenQueue(t testing.TB, netns string, number uint16, size uint32) *Queue {
	t.Helper()
	q := &Queue{number: number}
	In(t, netns, func() (err error) {
		q.FD, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	t.Cleanup(func() { _ = unix.Close(q.FD) })
	patient := unix.NsecToTimeval(patience.Nanoseconds())
	bind := nl.NewRtAttr(nfqaCfgCmd, []byte{nfqnlCfgCmdBind, 0, 0, unix.AF_INET})
	params := nl.NewRtAttr(nfqaCfgParams, append(binary.BigEndian.AppendUint32(nil, size), nfqnlCopyPacket))
	err := errors.Join(unix.SetsockoptTimeval(q.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patient),
		q.send(q.message(nfqnlMsgConfig, bind)), q.send(q.message(nfqnlMsgConfig, params)))
	if err != nil {
		t.Fatalf("open queue %d: %v", number, err)
	}
	return q
}

func (q *Queue) message(kind int, attr *nl.RtAttr) []byte {
	req := nl.NewNetlinkRequest(nfqnlSubsystem<<8|kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(q.number)})
	req.AddData(attr)
	return req.Serialize()
}

func (q *Queue) send(message []byte) error {
	return unix.Sendto(q.FD, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// Next waits for the next packet, and returns its number. If none comes within ten seconds, the test ends.
func (q *Queue) Next(t testing.TB) (packet uint32) {
	t.Helper()
	buf := make([]byte, 4096)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, err := unix.Read(q.FD, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("queue %d gets no packet: %v", q.number, err)
		}
		// The kernel doesn't pad the last attribute, and the library needs the padding.
		padded := min((n+3)&^3, len(buf))
		attrs, err := nl.ParseRouteAttr(buf[min(n, unix.NLMSG_HDRLEN+nl.SizeofNfgenmsg):padded])
		if err != nil {
			t.Fatalf("a packet of queue %d: %v", q.number, err)
		}
		for _, a := range attrs {
			if a.Attr.Type == QueuedPacket {
				return binary.BigEndian.Uint32(a.Value)
			}
		}
	}
	t.Fatalf("queue %d gets no packet", q.number)
	return 0
}

// Verdict returns a message that lets the packet go on. Its last four bytes are the packet's number.
func (q *Queue) Verdict(packet uint32) []byte {
	const accept = 1 // NF_ACCEPT
	header := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, accept), packet)
	return q.message(nfqnlMsgVerdict, nl.NewRtAttr(nfqaVerdictHdr, header))
}

// Accept lets the packet go on. If the kernel doesn't take the verdict, the test ends.
func (q *Queue) Accept(t testing.TB, packet uint32) {
	t.Helper()
	if err := q.send(q.Verdict(packet)); err != nil {
		t.Fatalf("accept packet %d of queue %d: %v", packet, q.number, err)
	}
}
