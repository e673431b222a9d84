package conntrack

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/batch"
)

// All yields the entries of the connection table. An entry is valid until the next entry is yielded. If the table can't
// be read completely, the last element is an error. All allocates no memory for an entry, because a node may have
// hundreds of thousands of entries.
//
// Equivalent to: conntrack -L -o labels; conntrack -L -f ipv6 -o labels
func All() iter.Seq2[Connection, error] { return dump(unix.AF_UNSPEC) }

func dump(family uint8, filter ...*nl.RtAttr) iter.Seq2[Connection, error] {
	return func(yield func(Connection, error) bool) {
		more, unread := true, 0
		req := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, family)
		for _, attr := range filter {
			req.AddData(attr)
		}
		d := batch.NewDumper(unix.NETLINK_NETFILTER)
		defer d.Close()
		err := d.Dump(req, func(msg []byte) bool {
			if c, ok := parse(msg); ok {
				more = yield(c, nil)
			} else {
				unread++
			}
			return more
		})
		// Policies may deny the connections that can't be parsed, so the caller must hear of these connections.
		if err == nil && unread > 0 {
			err = fmt.Errorf("%d of them can't be understood", unread)
		}
		if err != nil && more {
			yield(Connection{}, fmt.Errorf("list connections: %w", err))
		}
	}
}

func parse(msg []byte) (c Connection, ok bool) {
	for b := msg[min(nl.SizeofNfgenmsg, len(msg)):]; ; {
		var kind uint16
		var value []byte
		if kind, value, b = attribute(b); value == nil {
			break
		}
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			c.tuple = value
			t := parseTuple(value)
			c.Src, c.Proto = t.src, t.proto
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(value)
			c.Dst, c.Port = t.src, t.sport
		case nl.CTA_PROTOINFO:
			c.state = parseTCP(value)
		case nl.CTA_STATUS:
			if len(value) == 4 {
				status := binary.BigEndian.Uint32(value)
				c.Assured, c.Translated = status&assured != 0, status&dstNAT != 0
			}
		case nl.CTA_ZONE:
			copy(c.zone[:], value)
		case nl.CTA_ID:
			copy(c.id[:], value)
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

func parseTCP(info []byte) (s tcpState) {
	kind, tcp, _ := attribute(info)
	if kind != nl.CTA_PROTOINFO_TCP {
		return tcpState{}
	}
	for {
		var value []byte
		if kind, value, tcp = attribute(tcp); value == nil {
			return s
		}
		switch {
		case len(value) == 0:
		case kind == nl.CTA_PROTOINFO_TCP_STATE:
			s.state = value[0]
		case kind == nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL:
			s.flags, s.known = value[0], true
		}
	}
}

type tuple struct {
	src   netip.Addr
	proto uint8
	sport uint16
}

func parseTuple(b []byte) (t tuple) {
	for {
		var part uint16
		var nested []byte
		if part, nested, b = attribute(b); nested == nil {
			return t
		}
		for {
			var kind uint16
			var value []byte
			if kind, value, nested = attribute(nested); value == nil {
				break
			}
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
}

func attribute(b []byte) (kind uint16, value, rest []byte) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, nil
	}
	rest = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	return binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:size], rest
}
