package nodetest

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Entry is an entry of the connection table, for a connection whose addresses no NAT rule has translated.
type Entry struct {
	Src, Dst    netip.Addr
	Proto       uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	Sport, Port uint16
	State       uint8  // the TCP state (enum tcp_conntrack)
	Status      uint32 // Answered, Assured or both
}

// These are bits of an entry's status (enum ip_conntrack_status).
const (
	Answered = 1 << 1
	Assured  = 1 << 2
)

// Fill makes a network namespace for the goroutine's thread, and adds entries to the namespace's connection table. The
// function entry returns the i-th entry. Fill needs root.
func Fill(t testing.TB, entries int, entry func(i int) Entry) {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	Add(t, entries, entry)
}

// Add adds entries to the connection table of the thread's network namespace. entry returns the i-th entry.
func Add(t testing.TB, entries int, entry func(i int) Entry) {
	t.Helper()
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for i := range entries {
		e := entry(i)
		family := uint8(unix.AF_INET)
		if e.Src.Is6() {
			family = unix.AF_INET6
		}
		req := nl.NewNetlinkRequest(
			unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Seq: uint32(i), Socket: socket}}
		req.AddData(tuple(nl.CTA_TUPLE_ORIG, e.Src, e.Dst, e.Proto, e.Sport, e.Port))
		req.AddData(tuple(nl.CTA_TUPLE_REPLY, e.Dst, e.Src, e.Proto, e.Port, e.Sport))
		req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, nl.BEUint32Attr(3600)))
		const confirmed = 1 << 3
		req.AddData(nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(confirmed|e.Status)))
		if e.Proto == unix.IPPROTO_TCP {
			info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
			info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil).AddRtAttr(
				nl.CTA_PROTOINFO_TCP_STATE, []byte{e.State})
			req.AddData(info)
		}
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func tuple(kind int, src, dst netip.Addr, proto uint8, sport, dport uint16) *nl.RtAttr {
	t := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	from, to := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if src.Is6() {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	ip.AddRtAttr(from, src.AsSlice())
	ip.AddRtAttr(to, dst.AsSlice())
	p := t.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	p.AddRtAttr(nl.CTA_PROTO_NUM, []byte{proto})
	p.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, sport))
	p.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, dport))
	return t
}

// Dump returns the number of entries of the connection table. It doesn't parse the entries, so the kernel takes nearly
// all of the time.
func Dump(t testing.TB) (entries int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 64<<10); ; {
		n, err := unix.Read(fd, buf)
		if err != nil || n < unix.SizeofNlMsghdr {
			t.Fatalf("%d bytes, %v", n, err)
		}
		for msgs := buf[:n]; len(msgs) >= unix.SizeofNlMsghdr; entries++ {
			switch binary.NativeEndian.Uint16(msgs[4:]) {
			case unix.NLMSG_DONE:
				return entries
			case unix.NLMSG_ERROR:
				t.Fatal("the kernel doesn't list connections")
			}
			msgs = msgs[min(len(msgs), int(binary.NativeEndian.Uint32(msgs)+3)&^3):]
		}
	}
}

// CPU returns the processor time of the process, including the kernel's part.
func CPU(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
