package nflog

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// These are the protocols whose headers FlowOf reads, the extension headers of IPv6, and the number of extension
// headers that FlowOf skips at most.
const (
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoICMPv6   = 58
	protoSCTP     = 132
	protoUDPLite  = 136
	extHopByHop   = 0
	extRouting    = 43
	extFragment   = 44
	extAuth       = 51
	extDestOpts   = 60
	maxExtHeaders = 8
)

// Flow has the addresses, protocol and ports of a packet, as far as the packet's headers have them. Flows can be keys
// of a map.
type Flow struct {
	// Src and Dst are addresses. IPv4 addresses are in their IPv6-mapped form. The fields are arrays, because a
	// netip.Addr contains a pointer, and the garbage collector would have to look at it.
	Src, Dst [16]byte
	// EtherType is the packet's EtherType. If the packet is neither IPv4, IPv6 nor ARP, all other fields are zero.
	EtherType uint16
	Proto     uint8
	// Type and Code belong to an ICMP packet. They are 0 for other packets, and in a later fragment.
	Type, Code uint8
	// SrcPort and DstPort are the ports of a TCP, UDP, UDP-Lite or SCTP packet. They are 0 in a later fragment.
	SrcPort, DstPort uint16
}

// Source returns the sender's address. If the packet is neither IP nor ARP, it returns the zero Addr.
func (f Flow) Source() netip.Addr { return f.addr(f.Src) }

// Destination returns the receiver's address. If the packet is neither IP nor ARP, it returns the zero Addr.
func (f Flow) Destination() netip.Addr { return f.addr(f.Dst) }

func (f Flow) addr(a [16]byte) netip.Addr {
	switch f.EtherType {
	case etherIPv4, etherARP:
		return netip.AddrFrom16(a).Unmap()
	case etherIPv6:
		return netip.AddrFrom16(a)
	}
	return netip.Addr{}
}

// ICMP reports whether the packet is an ICMP packet, so that Type and Code are valid.
func (f Flow) ICMP() bool {
	return f.EtherType == etherIPv4 && f.Proto == protoICMP || f.EtherType == etherIPv6 && f.Proto == protoICMPv6
}

// FlowOf reads the headers of a packet. b begins with the IP or ARP header. The second result is true if the packet has
// both addresses.
func FlowOf(etherType uint16, b []byte) (Flow, bool) {
	f := Flow{EtherType: etherType}
	switch etherType {
	case etherIPv4:
		return f, f.ipv4(b)
	case etherIPv6:
		return f, f.ipv6(b)
	case etherARP: // for IPv4 over Ethernet (RFC 826)
		if len(b) < 28 || binary.BigEndian.Uint16(b[2:]) != etherIPv4 || b[4] != 6 || b[5] != 4 {
			return f, false
		}
		f.Src, f.Dst = mapped(b[14:]), mapped(b[24:])
		return f, true
	}
	return f, false
}

// InTunnel reads the headers of the packet inside a VXLAN packet (RFC 7348, section 5). b begins with the outer IP
// header. The second result is true if the inner packet has both addresses.
func InTunnel(etherType uint16, b []byte) (Flow, bool) {
	outer, ok := FlowOf(etherType, b)
	if !ok || outer.Proto != protoUDP || outer.DstPort == 0 {
		return Flow{}, false
	}
	size := 40 // the length of an IPv6 header without extension headers
	if etherType == etherIPv4 {
		size = int(b[0]&15) * 4
	}
	const headers, ethernet = 8 + 8, 14 // headers of UDP and VXLAN, and of Ethernet
	if len(b) < size+headers+ethernet {
		return Flow{}, false
	}
	inner := b[size+headers:]
	return FlowOf(binary.BigEndian.Uint16(inner[ethernet-2:]), inner[ethernet:])
}

func mapped(b []byte) [16]byte { return netip.AddrFrom4([4]byte(b[:4])).As16() }

func (f *Flow) ipv4(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 {
		return false
	}
	f.Src, f.Dst, f.Proto = mapped(b[12:]), mapped(b[16:]), b[9]
	first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0
	if size := int(b[0]&15) * 4; first && size >= 20 && size <= len(b) {
		f.transport(b[size:])
	}
	return true
}

func (f *Flow) ipv6(b []byte) bool {
	if len(b) < 40 || b[0]>>4 != 6 {
		return false
	}
	f.Src, f.Dst, f.Proto = [16]byte(b[8:]), [16]byte(b[24:]), b[6]
	b = b[40:]
	for range maxExtHeaders {
		size := 0
		switch f.Proto {
		case extHopByHop, extRouting, extDestOpts:
			if len(b) >= 2 {
				size = (int(b[1]) + 1) * 8
			}
		case extAuth:
			if len(b) >= 2 {
				size = (int(b[1]) + 2) * 4
			}
		case extFragment:
			size = 8
		default:
			f.transport(b)
			return true
		}
		if size == 0 || len(b) < size {
			return true
		}
		later := f.Proto == extFragment && binary.BigEndian.Uint16(b[2:])&0xfff8 != 0
		f.Proto, b = b[0], b[size:]
		if later { // a later fragment has no header of the protocol
			return true
		}
	}
	return true
}

func (f *Flow) transport(b []byte) {
	switch f.Proto {
	case protoTCP, protoUDP, protoSCTP, protoUDPLite:
		if len(b) >= 4 {
			f.SrcPort, f.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	}
	if f.ICMP() && len(b) >= 2 {
		f.Type, f.Code = b[0], b[1]
	}
}
