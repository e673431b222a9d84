package conntrack

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// renewals is how often making an entry anew is tried if packets of the connection's keep coming between.
const renewals = 100

// renew makes the entry anew, with room for labels and with these. It stays the same connection, opened from the same
// side: deleting it alone would let the next packet of the server's open it the other way round, where another policy
// decides. Translated addresses are no longer translated, which matters only if the connection is to go on one day.
//
// Equivalent to: conntrack -D TUPLE; conntrack -I TUPLE -r REPLY -t TIMEOUT -u ASSURED,SEEN_REPLY -l 127
func (c Connection) renew(labels ...*nl.RtAttr) error {
	reply, kept, err := c.read()
	if err != nil {
		return err
	}
	for range renewals {
		for _, tuple := range [][]byte{c.tuple, reply} { // the latter is that of an entry which has come between
			err := Connection{family: c.family, tuple: tuple}.send(nl.IPCTNL_MSG_CT_DELETE)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete: %w", err)
			}
		}
		req := request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, c.family)
		req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, c.tuple))
		req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_REPLY|unix.NLA_F_NESTED, reply))
		for _, a := range append(kept, labels...) {
			req.AddData(a)
		}
		if _, err = req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("make anew: %w", err)
	}
	// If there was no room for labels this time either, the kernel has said nothing.
	return c.send(nl.IPCTNL_MSG_CT_NEW, labels...)
}

// read returns the tuple of the replies, and what a new entry takes over from this one.
//
// Equivalent to: conntrack -G TUPLE
func (c Connection) read() (reply []byte, kept []*nl.RtAttr, err error) {
	req := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK, c.family) // the entry comes as if others were to follow, and the ACK ends it
	req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, c.tuple))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read: %w", err)
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofNfgenmsg {
		return nil, nil, errors.New("read: the kernel's answer is no entry")
	}
	for a := range nl.ParseAttributes(msgs[0][nl.SizeofNfgenmsg:]) {
		switch a.Type & nl.NLA_TYPE_MASK {
		case nl.CTA_TUPLE_REPLY:
			reply = a.Value
		case nl.CTA_TIMEOUT:
			kept = append(kept, nl.NewRtAttr(nl.CTA_TIMEOUT, a.Value))
		case nl.CTA_PROTOINFO:
			if c.Proto == unix.IPPROTO_TCP {
				kept = append(kept, anyTCP(c.Midstream()))
			} else {
				kept = append(kept, nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, a.Value))
			}
		}
	}
	// Assured entries aren't thrown out when the table is full.
	const confirmed, seenReply, assured = 1 << 3, 1 << 1, 1 << 2 // enum ip_conntrack_status
	return reply, append(kept, nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(confirmed|seenReply|assured))), nil
}

// anyTCP is the state of a TCP connection that every packet fits in: the window that the old entry knew isn't told, and a
// packet that doesn't fit would belong to no connection, nor to one that was cut. It stays known whether somebody has seen
// the connection begin.
func anyTCP(midstream bool) *nl.RtAttr {
	info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	tcp := info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
	const established = 3 // enum tcp_conntrack
	flags := byte(flagLiberal | flagWindowScale)
	if midstream {
		flags = flagLiberal
	}
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{established})
	for _, side := range []int{nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, nl.CTA_PROTOINFO_TCP_FLAGS_REPLY} {
		tcp.AddRtAttr(side, []byte{flags, flags}) // struct nf_ct_tcp_flags: flags, mask
	}
	return info
}
