//go:build bench

package bench_test

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const queueNumber = 100

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
	nfqaPacketHdr   = 1
)

// headersOfPackets is how many bytes of each packet the kernel copies to the queue.
const headersOfPackets = 128

// queue accepts first packets in user space. A real program would also look up policies.
type queue struct {
	fd      int
	buf     []byte
	verdict []byte // a message; its last four bytes are the packet's number
}

func newQueue() (*queue, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := setWait(fd, idle); err != nil {
		return nil, err
	}
	q := &queue{fd: fd, buf: make([]byte, 4096)}
	bind := nl.NewRtAttr(nfqaCfgCmd, []byte{nfqnlCfgCmdBind, 0, 0, unix.AF_INET})
	params := nl.NewRtAttr(nfqaCfgParams, append(binary.BigEndian.AppendUint32(nil, headersOfPackets), nfqnlCopyPacket))
	for _, attr := range []*nl.RtAttr{bind, params} {
		kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
		if err := unix.Sendto(fd, message(nfqnlMsgConfig, attr), 0, kernel); err != nil {
			return nil, fmt.Errorf("open queue %d: %w", queueNumber, err)
		}
	}
	accept := append(binary.BigEndian.AppendUint32(nil, 1), 0, 0, 0, 0) // NF_ACCEPT, and the packet's number
	q.verdict = message(nfqnlMsgVerdict, nl.NewRtAttr(nfqaVerdictHdr, accept))
	return q, nil
}

func message(kind int, attr *nl.RtAttr) []byte {
	req := nl.NewNetlinkRequest(nfqnlSubsystem<<8|kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(queueNumber)})
	req.AddData(attr)
	return req.Serialize()
}

func (q *queue) accept() error {
	k, err := read(q.fd, q.buf)
	if err != nil {
		return quiet(err)
	}
	const head = unix.NLMSG_HDRLEN + nl.SizeofNfgenmsg
	for rest := q.buf[head:k]; len(rest) >= unix.NLA_HDRLEN; {
		size, kind := binary.NativeEndian.Uint16(rest), binary.NativeEndian.Uint16(rest[2:])
		if kind == nfqaPacketHdr {
			copy(q.verdict[len(q.verdict)-4:], rest[unix.NLA_HDRLEN:])
			_, err := write(q.fd, q.verdict)
			return err
		}
		rest = rest[min(len(rest), (int(size)+3)&^3):]
	}
	return nil
}
