package conntrack

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/attrs"
)

// maxRecreations is how often recreate tries. A packet of the connection may make an entry in between.
const maxRecreations = 100

// recreate deletes the entry and makes it again with the labels. After a deletion alone, the server's next
// packet would open the connection from the other side. In the new entry, addresses are no longer translated.
//
// Equivalent to: conntrack -D TUPLE; conntrack -I TUPLE -r REPLY -t TIMEOUT -u ASSURED,SEEN_REPLY -l 127
func (c Connection) recreate(labels ...*nl.RtAttr) error {
	reply, kept, err := c.read()
	if err != nil {
		return err
	}
	for range maxRecreations {
		for _, tuple := range [][]byte{c.tuple, reply} { // a packet in between may have made an entry in either direction
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
	// If the new entry has no room for labels, the kernel reports it only when they are set once more.
	return c.send(nl.IPCTNL_MSG_CT_NEW, labels...)
}

// read returns the tuple of the replies, and the attributes for the new entry: the old entry's timeout, a state that
// fits the connection, and a status.
//
// Equivalent to: conntrack -G TUPLE
func (c Connection) read() (reply []byte, kept []*nl.RtAttr, err error) {
	// The kernel flags the entry as a part of a list, so only the acknowledgement ends the answer.
	req := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK, c.family)
	req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, c.tuple))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read: %w", err)
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofNfgenmsg {
		return nil, nil, errors.New("read: the kernel's answer is no entry")
	}
	for kind, value := range attrs.In(msgs[0][nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_REPLY:
			reply = value
		case nl.CTA_TIMEOUT:
			kept = append(kept, nl.NewRtAttr(nl.CTA_TIMEOUT, value))
		case nl.CTA_PROTOINFO:
			if c.Proto == unix.IPPROTO_TCP {
				kept = append(kept, looseTCP(c.Midstream()))
			} else {
				kept = append(kept, nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, value))
			}
		}
	}
	// The kernel keeps assured entries when the table is full.
	const confirmed, seenReply, assured = 1 << 3, 1 << 1, 1 << 2 // enum ip_conntrack_status
	return reply, append(kept, nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(confirmed|seenReply|assured))), nil
}

// looseTCP returns a TCP state that every packet of the connection fits. The old entry's window can't be read,
// and a packet outside of the window would be INVALID.
func looseTCP(midstream bool) *nl.RtAttr {
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
