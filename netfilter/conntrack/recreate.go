package conntrack

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/attrs"
)

// maxRecreations is how often recreate tries to make the new entry. A try fails if a packet of the connection makes an
// entry after the deletion.
const maxRecreations = 100

// recreate deletes the entry and makes it again with the labels. If it only deleted the entry, the server's next packet
// would begin a new connection in the opposite direction. The new entry doesn't translate addresses.
//
// Equivalent to: conntrack -D KEY; conntrack -I KEY -r REPLY -t TIMEOUT -u ASSURED,SEEN_REPLY -l 127
func (c Connection) recreate(labels ...*nl.RtAttr) error {
	reply, kept, err := c.read()
	if err != nil {
		return err
	}
	for range maxRecreations {
		for _, tuple := range [][]byte{c.tuple, reply} { // a packet may have made a new entry in either direction
			err := Connection{family: c.family, tuple: tuple, zone: c.zone}.send(nl.IPCTNL_MSG_CT_DELETE)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete: %w", err)
			}
		}
		req := request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, c.family)
		req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_REPLY|unix.NLA_F_NESTED, reply))
		for _, a := range slices.Concat(c.key(), kept, labels) {
			req.AddData(a)
		}
		if _, err = req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("make anew: %w", err)
	}
	// Set the labels once more, because only this request fails if the new entry has no room for labels.
	return c.send(nl.IPCTNL_MSG_CT_NEW, labels...)
}

// read returns what is needed to make the entry again: the tuple of the replies, the old entry's timeout, the
// protocol's state (for TCP, see looseTCP) and the new entry's status.
//
// Equivalent to: conntrack -G KEY
func (c Connection) read() (reply []byte, kept []*nl.RtAttr, err error) {
	// The kernel's answer is marked as a part of a list, so Execute waits for the end of the list. NLM_F_ACK asks for an
	// acknowledgement, which ends the list.
	req := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK, c.family)
	for _, a := range c.key() {
		req.AddData(a)
	}
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
	// The new entry gets the status "assured", so that the kernel doesn't delete it when the connection table is
	// full.
	const confirmed, seenReply = 1 << 3, 1 << 1 // enum ip_conntrack_status
	return reply, append(kept, nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(confirmed|seenReply|assured))), nil
}

// looseTCP returns a TCP state that accepts every packet of the connection. The old entry's TCP window can't be read,
// and with a wrong window the kernel would call packets INVALID.
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
