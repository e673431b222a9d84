// Package conntrack lists connections in the kernel's connection table, marks them as cut, and deletes them.
//
// Invariants:
//   - The package knows nothing of policies.
//   - Each call can be repeated: an entry that is gone is no error.
//   - If an entry can't be understood, the list ends with an error. It never counts as complete.
//   - Forget deletes only the entry that was listed, and no later one of the same addresses and ports.
package conntrack

import (
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is an entry of the connection table.
type Connection struct {
	// Src opened the connection, and Dst answers. If the destination was translated, Dst and Port are the
	// translated ones.
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // of Dst; 0 for protocols without ports
	Cut      bool
	// Assured is the kernel's IPS_ASSURED. For TCP, the handshake is complete. For UDP, both sides have sent,
	// and packets still came after two seconds.
	Assured bool
	// Translated means that Src sent to another address or port than Dst and Port.
	Translated bool
	// family and tuple identify the entry in a request.
	family uint8
	tuple  []byte
	id     [4]byte // distinguishes the entry from later ones with the same tuple
	state  tcpState
}

type tcpState struct {
	state uint8 // of enum tcp_conntrack
	flags uint8 // of the side that opened the connection
	known bool  // the entry has the flags
}

const labelBytes = 16

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

func request(operation, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// Bits of an entry's status (enum ip_conntrack_status in include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	assured = 1 << 2
	dstNAT  = 1 << 5
)

const (
	flagWindowScale = 0x01
	flagLiberal     = 0x08
)

// Midstream reports whether the TCP connection had already begun when the kernel first saw it. Then nobody
// knows which side opened it. The kernel marks such entries by their flags (tcp_new in
// net/netfilter/nf_conntrack_proto_tcp.c).
func (c Connection) Midstream() bool {
	return c.state.known && c.state.flags&(flagLiberal|flagWindowScale) == flagLiberal
}

// TCP's states at the end of a connection (enum tcp_conntrack in
// include/uapi/linux/netfilter/nf_conntrack_tcp.h). In LAST_ACK both sides have sent FIN. In CLOSE one side has
// sent RST.
const (
	stateLastAck  = 6
	stateTimeWait = 7
	stateClose    = 8
)

// Over reports whether a TCP connection has ended for both sides. The kernel keeps its entry for up to two
// minutes.
func (c Connection) Over() bool {
	return c.state.state == stateLastAck || c.state.state == stateTimeWait || c.state.state == stateClose
}

// Alive reports whether the connection is still in use, as far as the kernel knows.
func (c Connection) Alive() bool { return c.Assured && !c.Over() }
