// Package conntrack owns weir's use of the kernel's connection table: marking connections as cut, and deleting those of
// addresses that change hands. It knows nothing of policy.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Connection is an entry of the table.
type Connection struct {
	// Src opened the connection; Dst is who answers, behind any translation of the destination.
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // of Dst; 0 for protocols without ports
	Cut      bool
	// tuple is the original direction's, as the kernel wrote it: it names the entry when it is sent back.
	tuple []byte
}

// labelBytes is the size of a connection's label (NF_CT_LABELS_MAX_SIZE).
const labelBytes = 16

// SetCut sets or clears the cut bit. An entry without room for labels is older than weir's first rule, so nobody judged
// it: it is deleted.
//
// Equivalent to: conntrack -U TUPLE --label-add 127 (or --label-del)
func (c Connection) SetCut(on bool) error {
	mask := make([]byte, labelBytes)
	mask[conf.CutLabel/8] |= 1 << (conf.CutLabel % 8)
	value := make([]byte, labelBytes)
	if on {
		copy(value, mask)
	}
	err := c.send(nl.IPCTNL_MSG_CT_NEW, nl.NewRtAttr(ctaLabels, value), nl.NewRtAttr(ctaLabelsMask, mask))
	if on && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EOPNOTSUPP)) {
		err = c.send(nl.IPCTNL_MSG_CT_DELETE)
	}
	if errors.Is(err, unix.ENOENT) { // it has ended
		return nil
	}
	return err
}

func (c Connection) send(operation int, attrs ...*nl.RtAttr) error {
	req := request(operation, unix.NLM_F_ACK)
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

func request(operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	return req
}

// List reads the table. The library's own reading of it keeps too little of an entry to name it again.
//
// Equivalent to: conntrack -L -o labels
func List() ([]Connection, error) {
	msgs, err := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	var all []Connection
	for _, m := range msgs {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		if c, ok := parse(m[nl.SizeofNfgenmsg:]); ok {
			all = append(all, c)
		}
	}
	return all, nil
}

func parse(attrs []byte) (c Connection, ok bool) {
	for a := range nl.ParseAttributes(attrs) {
		switch a.Type & nl.NLA_TYPE_MASK {
		case nl.CTA_TUPLE_ORIG:
			c.tuple = a.Value
			t := parseTuple(a.Value)
			c.Src, c.Proto = t.src, t.proto
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(a.Value)
			c.Dst, c.Port = t.src, t.sport
		case ctaLabels:
			c.Cut = len(a.Value) == labelBytes && a.Value[conf.CutLabel/8]&(1<<(conf.CutLabel%8)) != 0
		}
	}
	return c, c.tuple != nil && c.Src.IsValid() && c.Dst.IsValid()
}

type tuple struct {
	src   netip.Addr
	proto uint8
	sport uint16
}

func parseTuple(b []byte) (t tuple) {
	for a := range nl.ParseAttributes(b) {
		for n := range nl.ParseAttributes(a.Value) {
			switch kind := n.Type & nl.NLA_TYPE_MASK; a.Type & nl.NLA_TYPE_MASK {
			case nl.CTA_TUPLE_IP:
				if kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC {
					t.src, _ = netip.AddrFromSlice(n.Value)
				}
			case nl.CTA_TUPLE_PROTO:
				switch {
				case kind == nl.CTA_PROTO_NUM && len(n.Value) > 0:
					t.proto = n.Value[0]
				case kind == nl.CTA_PROTO_SRC_PORT && len(n.Value) == 2:
					t.sport = binary.BigEndian.Uint16(n.Value)
				}
			}
		}
	}
	return t
}

// Forget deletes the connections of an address that is about to belong to another pod, so that none of the old one's is
// taken for one that was let through.
//
// Equivalent to: conntrack -D -s ADDR; conntrack -D -d ADDR; conntrack -D -r ADDR
func Forget(addrs ...netip.Addr) error {
	all, err := List()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range all {
		if slices.Contains(addrs, c.Src) || slices.Contains(addrs, c.Dst) {
			if err := c.send(nl.IPCTNL_MSG_CT_DELETE); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("delete the connection from %s to %s: %w", c.Src, c.Dst, err))
			}
		}
	}
	return errors.Join(errs...)
}
