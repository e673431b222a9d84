// Package conntrack lists connections in the kernel's connection table, marks them as cut, and deletes the connections
// of an address that is about to be assigned to another pod. In an entry it changes only the cut bit of the label,
// unless it must make the entry again (see SetCut). It knows nothing of policy.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Connection is an entry of the connection table.
type Connection struct {
	// Src opened the connection, and Dst answers. If the destination was translated, Dst and Port are the translated ones.
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // of Dst; 0 for protocols without ports
	Cut      bool
	// Assured means that both sides have sent packets, and for UDP that packets still came two seconds after the first
	// (IPS_ASSURED). A UDP query with one answer is never assured.
	Assured bool
	// Translated means that Src sent to another address or port than Dst and Port.
	Translated bool
	// family and tuple (of the original direction) are as the kernel wrote them. In a request to the kernel they
	// identify the entry.
	family uint8
	tuple  []byte
	info   []byte // the protocol's state, such as TCP's
}

// labelBytes is the size of a connection's label (NF_CT_LABELS_MAX_SIZE).
const labelBytes = 16

// SetCut sets or clears the cut bit. It returns nil if the connection has ended. An entry has no room for a label if
// no rule used labels when the connection began: weir's rules didn't exist yet, or another program had flushed them.
// To set the bit in such an entry, SetCut deletes the entry and makes it again.
//
// Equivalent to: conntrack -U TUPLE --label-add 127 (or --label-del)
func (c Connection) SetCut(on bool) error {
	mask := make([]byte, labelBytes)
	mask[conf.CutLabel/8] |= 1 << (conf.CutLabel % 8)
	value := make([]byte, labelBytes)
	if on {
		copy(value, mask)
	}
	labels := []*nl.RtAttr{nl.NewRtAttr(ctaLabels, value), nl.NewRtAttr(ctaLabelsMask, mask)}
	err := c.send(nl.IPCTNL_MSG_CT_NEW, labels...)
	if on && errors.Is(err, unix.ENOSPC) {
		err = c.recreate(labels...)
	}
	if errors.Is(err, unix.ENOENT) { // the connection has ended
		return nil
	}
	return err
}

func (c Connection) send(operation int, attrs ...*nl.RtAttr) error {
	req := request(operation, unix.NLM_F_ACK, c.family)
	req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, c.tuple))
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// Attributes of enum ctattr_type, include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaLabels     = 22
	ctaLabelsMask = 23
)

// request returns a request about entries of the family, or of all families for AF_UNSPEC.
func request(operation, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// All yields the entries of the table. It keeps in memory only the entries that the kernel sends in one answer, not
// the whole table. An error comes last. The netlink library can list the table too, but it doesn't keep enough of an
// entry to identify the entry later.
//
// Equivalent to: conntrack -L -o labels; conntrack -L -f ipv6 -o labels
func All() iter.Seq2[Connection, error] { return dump(unix.AF_UNSPEC) }

// dump yields the family's entries that match the filter. A kernel that doesn't know filters sends all entries.
func dump(family uint8, filter ...*nl.RtAttr) iter.Seq2[Connection, error] {
	return func(yield func(Connection, error) bool) {
		req := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, family)
		for _, attr := range filter {
			req.AddData(attr)
		}
		more, unread := true, 0
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			if c, ok := parse(msg); ok {
				more = yield(c, nil)
			} else {
				unread++
			}
			return more
		})
		if err == nil && unread > 0 { // for these entries it is unknown whether a policy allows them
			err = fmt.Errorf("%d of them can't be understood", unread)
		}
		if err != nil && more {
			yield(Connection{}, fmt.Errorf("list connections: %w", err))
		}
	}
}

// parse reads an entry. It returns false if the message isn't a complete entry.
func parse(msg []byte) (c Connection, ok bool) {
	for kind, value := range attributes(msg[min(nl.SizeofNfgenmsg, len(msg)):]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			c.tuple = value
			t := parseTuple(value)
			c.Src, c.Proto = t.src, t.proto
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(value)
			c.Dst, c.Port = t.src, t.sport
		case nl.CTA_PROTOINFO:
			c.info = value
		case nl.CTA_STATUS:
			if len(value) == 4 {
				status := binary.BigEndian.Uint32(value)
				c.Assured, c.Translated = status&assured != 0, status&dstNAT != 0
			}
		case ctaLabels:
			c.Cut = len(value) == labelBytes && value[conf.CutLabel/8]&(1<<(conf.CutLabel%8)) != 0
		}
	}
	c.family = unix.AF_INET
	if c.Src.Is6() {
		c.family = unix.AF_INET6
	}
	return c, c.tuple != nil && c.Src.IsValid() && c.Dst.IsValid()
}

// Bits of an entry's status (enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h). dstNAT says
// that the destination was translated; iptables calls it --ctstate DNAT.
const (
	assured = 1 << 2
	dstNAT  = 1 << 5
)

// TCP's flags in an entry (enum in include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	flagWindowScale = 0x01
	flagLiberal     = 0x08
)

// Midstream reports whether the TCP connection had already begun when the kernel first saw it, so that it is unknown
// which side opened the connection. For such a connection, tcp_new (net/netfilter/nf_conntrack_proto_tcp.c) records
// that any window is valid and that the window scale is unknown.
func (c Connection) Midstream() bool {
	flags, ok := c.tcp(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL)
	return ok && flags&(flagLiberal|flagWindowScale) == flagLiberal
}

// TCP's states at the end of a connection (enum tcp_conntrack in include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	stateTimeWait = 7
	stateClose    = 8
)

// Alive reports whether the connection is still in use, as far as the kernel knows. The kernel keeps the entry of a
// connection that has ended for up to two minutes: TCP in TIME_WAIT or CLOSE, a UDP query that was answered, a SYN
// without an answer.
func (c Connection) Alive() bool {
	state, _ := c.tcp(nl.CTA_PROTOINFO_TCP_STATE)
	return c.Assured && state != stateTimeWait && state != stateClose
}

// tcp returns the first byte of an attribute of TCP's state; false if the entry has none.
func (c Connection) tcp(kind uint16) (value byte, ok bool) {
	if c.Proto != unix.IPPROTO_TCP {
		return 0, false
	}
	for _, tcp := range attributes(c.info) {
		for k, v := range attributes(tcp) {
			if k == kind && len(v) > 0 {
				return v[0], true
			}
		}
	}
	return 0, false
}

type tuple struct {
	src   netip.Addr
	proto uint8
	sport uint16
}

func parseTuple(b []byte) (t tuple) {
	for part, nested := range attributes(b) {
		for kind, value := range attributes(nested) {
			switch {
			case part == nl.CTA_TUPLE_IP && (kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC):
				t.src, _ = netip.AddrFromSlice(value)
			case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_NUM && len(value) > 0:
				t.proto = value[0]
			case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_SRC_PORT && len(value) == 2:
				t.sport = binary.BigEndian.Uint16(value)
			}
		}
	}
	return t
}

// attributes yields the attributes in b with their types. The netlink library's iterator starts a goroutine each time,
// which takes ten times as long as the rest of the work.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if size < unix.SizeofNlAttr || size > len(b) || !yield(kind&nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}
