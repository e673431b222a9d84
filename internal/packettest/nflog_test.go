package packettest

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

type nflog struct{ fd int }

// These constants are from include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgConfig  = 1
	nfulaCfgCmd      = 1
	nfulnlCfgCmdBind = 1
	nfulaCfgQthresh  = 5 // how many packets the kernel puts into one message
	nfulaPrefix      = 10
)

// listen binds to the log group of weir's rules, with a small receive buffer.
//
// Equivalent to: tcpdump -ni nflog:88
func listen(t *testing.T) nflog {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10); err != nil {
		t.Fatal(err)
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgConfig, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(conf.LogGroup)})
	req.AddData(nl.NewRtAttr(nfulaCfgCmd, []byte{nfulnlCfgCmdBind}))
	req.AddData(nl.NewRtAttr(nfulaCfgQthresh, nl.BEUint32Attr(1)))
	if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	return nflog{fd}
}

func (l nflog) close() { _ = unix.Close(l.fd) }

// read returns the different prefixes of the packets that were logged until now.
func (l nflog) read(t *testing.T) map[string]bool {
	t.Helper()
	prefixes := map[string]bool{}
	buf := make([]byte, 64<<10)
	for {
		k, _, err := unix.Recvfrom(l.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return prefixes
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:k]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			for a := range nl.ParseAttributes(b[unix.SizeofNlMsghdr+nl.SizeofNfgenmsg : size]) {
				if a.Type == nfulaPrefix {
					prefixes[nl.BytesToString(a.Value)] = true
				}
			}
			b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

// overrun reports whether messages were lost because they weren't read.
func (l nflog) overrun(t *testing.T) bool {
	t.Helper()
	_, _, err := unix.Recvfrom(l.fd, make([]byte, 64<<10), 0)
	if err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
	return err != nil
}
