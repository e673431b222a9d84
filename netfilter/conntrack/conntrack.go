// Package conntrack lists connections in the kernel's connection table, marks connections as cut, and deletes
// connections.
//
// Invariants:
//   - The package knows nothing of policies.
//   - Each call can be repeated: it is no error if an entry is gone.
//   - If an entry can't be parsed, the list ends with an error, and doesn't count as complete.
//   - Forget deletes only the listed entry, and never a later one with the same addresses and ports.
//   - Entries of all zones are listed, marked and deleted. Another program may have chosen a connection's zone.
package conntrack

import (
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is an entry of the connection table.
type Connection struct {
	// Src opened the connection, and Dst answers. If the destination was translated, as for a Service, Dst and Port are
	// the address and the port of the pod behind the Service.
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // the port of Dst; 0 for protocols without ports
	Cut      bool
	// Assured is the kernel's flag IPS_ASSURED. A TCP connection is assured after the handshake. A UDP connection is
	// assured once both sides have sent packets for more than two seconds.
	Assured bool
	// Translated means that Src sent to another address or port than Dst and Port, for instance to a Service.
	Translated bool
	// family, tuple and zone identify the entry in requests to the kernel.
	family uint8
	tuple  []byte
	zone   zone
	id     [4]byte // differs between the entry and a later entry with the same tuple
	state  tcpState
}

type tcpState struct {
	state uint8 // one of enum tcp_conntrack
	flags uint8 // flags of the side that opened the connection
	known bool  // true if the kernel's message has the flags
}

// zone is the entry's zone of connection tracking, as the kernel writes it (big-endian). The default zone is 0. If only
// one direction of the connection is in a zone, the tuple of that direction has the zone, and Connection.zone is 0.
type zone [2]byte

const labelBytes = 16

func (c Connection) key() []*nl.RtAttr {
	key := []*nl.RtAttr{nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, c.tuple)}
	if c.zone != (zone{}) {
		key = append(key, nl.NewRtAttr(nl.CTA_ZONE, c.zone[:]))
	}
	return key
}

func (c Connection) send(operation int, attrs ...*nl.RtAttr) error {
	req := request(operation, unix.NLM_F_ACK, c.family)
	for _, a := range append(c.key(), attrs...) {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// These attributes are from enum ctattr_type (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaLabels     = 22
	ctaLabelsMask = 23
)

func request(operation, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// These are bits of an entry's status (enum ip_conntrack_status in include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	assured = 1 << 2
	dstNAT  = 1 << 5
)

const (
	flagWindowScale = 0x01
	flagLiberal     = 0x08
)

// Midstream reports whether the kernel has begun to track the TCP connection in its middle. Such an entry doesn't show
// which side opened the connection. The kernel's function tcp_new gives such an entry the flag BE_LIBERAL, and not the
// flag WINDOW_SCALE (net/netfilter/nf_conntrack_proto_tcp.c).
func (c Connection) Midstream() bool {
	return c.state.known && c.state.flags&(flagLiberal|flagWindowScale) == flagLiberal
}

// These are the states at the end of a TCP connection (enum tcp_conntrack in
// include/uapi/linux/netfilter/nf_conntrack_tcp.h). In LAST_ACK both sides have sent FIN. In CLOSE one side has sent
// RST.
const (
	stateLastAck  = 6
	stateTimeWait = 7
	stateClose    = 8
)

// Over reports whether the TCP connection has ended: both sides have sent FIN, or one side has sent RST. By default,
// the kernel keeps the entry of such a connection for at most two minutes.
func (c Connection) Over() bool {
	return c.state.state == stateLastAck || c.state.state == stateTimeWait || c.state.state == stateClose
}

// Alive reports whether the connection is in use, as far as the kernel knows.
func (c Connection) Alive() bool { return c.Assured && !c.Over() }
