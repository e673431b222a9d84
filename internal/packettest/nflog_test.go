package packettest

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	flows "github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

type nflog struct{ fd int }

// These constants are from include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgConfig  = 1
	nfulaCfgCmd      = 1
	nfulnlCfgCmdBind = 1
	nfulaCfgMode     = 2
	nfulnlCopyPacket = 2
	nfulaCfgBufSize  = 3
	nfulaCfgQthresh  = 5 // how many packets the kernel puts into one message
	nfulaPrefix      = 10
	nfulaPacketHdr   = 1 // the attribute begins with the packet's EtherType
	nfulaPayload     = 9
	nfulnlMsgPacket  = 0
)

// listen binds a socket to weir's log group. buffer is the size of the socket's buffer in bytes.
//
// Equivalent to: tcpdump -ni nflog:88 -s 128
func listen(t testing.TB, buffer int) nflog {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		t.Fatal(err)
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgConfig, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(conf.LogGroup)})
	req.AddData(nl.NewRtAttr(nfulaCfgCmd, []byte{nfulnlCfgCmdBind}))
	req.AddData(nl.NewRtAttr(nfulaCfgMode, append(nl.BEUint32Attr(128), nfulnlCopyPacket, 0)))
	req.AddData(nl.NewRtAttr(nfulaCfgBufSize, nl.BEUint32Attr(512)))
	req.AddData(nl.NewRtAttr(nfulaCfgQthresh, nl.BEUint32Attr(1)))
	if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	return nflog{fd}
}

func (l nflog) close() { _ = unix.Close(l.fd) }

type logged struct {
	prefix    string
	etherType uint16
	payload   []byte
}

// packets returns the packets that were logged since the last call. It doesn't wait, because the kernel logs a packet
// before the sender's system call returns.
func (l nflog) packets(t testing.TB) (all []logged) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		k, _, err := unix.Recvfrom(l.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:k]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			var p logged
			if binary.NativeEndian.Uint16(b[4:]) == unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgPacket {
				for a := range nl.ParseAttributes(b[unix.SizeofNlMsghdr+nl.SizeofNfgenmsg : size]) {
					switch a.Type {
					case nfulaPrefix:
						p.prefix = nl.BytesToString(a.Value)
					case nfulaPacketHdr:
						p.etherType = binary.BigEndian.Uint16(a.Value)
					case nfulaPayload:
						p.payload = append([]byte(nil), a.Value...)
					}
				}
				all = append(all, p)
			}
			b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

func (l nflog) read(t testing.TB) map[string]bool {
	t.Helper()
	prefixes := map[string]bool{}
	for _, p := range l.packets(t) {
		prefixes[p.prefix] = true
	}
	return prefixes
}

func (l nflog) overrun(t *testing.T) bool {
	t.Helper()
	_, _, err := unix.Recvfrom(l.fd, make([]byte, 64<<10), 0)
	if err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
	return err != nil
}

// audited is a packet that a rule of an audited policy has logged.
type audited struct {
	ruleset.Direction
	verdict.Packet
}

func (l nflog) audits(t testing.TB) map[audited]bool {
	t.Helper()
	all := map[audited]bool{}
	for _, p := range l.packets(t) {
		chain, ok := strings.CutPrefix(p.prefix, conf.AuditLogPrefix)
		if !ok {
			continue
		}
		a := audited{Direction: ruleset.Egress}
		if conf.KindOfChain(chain) == conf.ChainOfIngress {
			a.Direction = ruleset.Ingress
		}
		f, _ := flows.FlowOf(p.etherType, p.payload)
		a.Src, a.Dst, a.Port = f.Source(), f.Destination(), f.DstPort
		switch f.Proto {
		case unix.IPPROTO_TCP:
			a.Proto = ruleset.TCP
		case unix.IPPROTO_UDP:
			a.Proto = ruleset.UDP
		case unix.IPPROTO_SCTP:
			a.Proto = ruleset.SCTP
		default:
			a.Proto = ruleset.Protocol(strconv.Itoa(int(f.Proto)))
		}
		all[a] = true
	}
	return all
}
