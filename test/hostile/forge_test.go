package hostile

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

// frame is one frame of the hostile pod, or the fragments of one packet. Its number is the index in forge.frames. The
// payload or a port contains this number, so that each effect can be assigned to a frame.
type frame struct {
	class, name string
	// own is true if the sender is the pod's own MAC and address. Only such frames may reach the node's IP stack, and
	// policies decide on them.
	own bool
	// allowed says why the node may answer the frame. It is empty if the node must not answer the frame.
	allowed string
	// waits is true for a fragment of an incomplete packet. The IP stack keeps such a fragment.
	waits bool
	asks  netip.Addr
	data  [][]byte
}

type forge struct {
	t       testing.TB
	w       *world
	class   string
	allowed string
	frames  []*frame
}

type stack []gopacket.SerializableLayer

const firstPort = 20000

const markerText = "weir-hostile-"

// marker returns the text that identifies the next frame. It has 18 bytes.
func (f *forge) marker() []byte { return fmt.Appendf(nil, markerText+"%05d", len(f.frames)) }

func (f *forge) port() uint16 { return uint16(firstPort + len(f.frames)) }

// forged adds a frame that must have no effect.
func (f *forge) forged(name string, stacks ...stack) { f.put(name, false, f.serialize(stacks...)) }

func (f *forge) begin(class, allowed string) { f.class, f.allowed = class, allowed }

// ownName reports whether E, the hostile pod, has an address of the packet's family. ARP counts as IPv4.
func (f *forge) ownName(stacks ...stack) bool {
	for _, layer := range join(stacks) {
		switch layer.(type) {
		case *layers.IPv4:
			return f.w.has4
		case *layers.IPv6:
			return f.w.has6
		}
	}
	return f.w.has4 // ARP belongs to IPv4
}

// own adds a frame with the hostile pod's own address as the sender. If the pod (E) has no address of the family, the
// frame counts as forged.
func (f *forge) own(name string, stacks ...stack) *frame {
	return f.put(name, f.ownName(stacks...), f.serialize(stacks...))
}

func (f *forge) put(name string, own bool, data ...[]byte) *frame {
	one := &frame{class: f.class, name: name, own: own, data: data}
	if own {
		one.allowed = f.allowed
	}
	f.frames = append(f.frames, one)
	return one
}

func join(stacks []stack) stack {
	var all stack
	for _, s := range stacks {
		all = append(all, s...)
	}
	return all
}

func (f *forge) serialize(stacks ...stack) []byte {
	f.t.Helper()
	all := join(stacks)
	var ip gopacket.NetworkLayer
	for i, layer := range all {
		next := gopacket.LayerTypeZero
		if i+1 < len(all) {
			next = all[i+1].LayerType()
		}
		switch l := layer.(type) {
		case *layers.Ethernet: // change a copy, because many frames share this header
			h := *l
			setType(&h.EthernetType, next)
			all[i] = &h
		case *layers.Dot1Q:
			h := *l
			setType(&h.Type, next)
			all[i] = &h
		case *layers.IPv4:
			ip = l
			setProtocol(&l.Protocol, next)
		case *layers.IPv6:
			ip = l
			setProtocol(&l.NextHeader, next)
		case interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}:
			if err := l.SetNetworkLayerForChecksum(ip); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	return nodetest.Frame(f.t, all...)
}

func setType(kind *layers.EthernetType, next gopacket.LayerType) {
	types := map[gopacket.LayerType]layers.EthernetType{
		layers.LayerTypeIPv4: layers.EthernetTypeIPv4, layers.LayerTypeIPv6: layers.EthernetTypeIPv6,
		layers.LayerTypeARP: layers.EthernetTypeARP, layers.LayerTypeDot1Q: layers.EthernetTypeDot1Q,
	}
	if *kind == 0 {
		*kind = types[next]
	}
}

func setProtocol(protocol *layers.IPProtocol, next gopacket.LayerType) {
	protocols := map[gopacket.LayerType]layers.IPProtocol{
		layers.LayerTypeUDP: layers.IPProtocolUDP, layers.LayerTypeTCP: layers.IPProtocolTCP,
		layers.LayerTypeICMPv4: layers.IPProtocolICMPv4, layers.LayerTypeICMPv6: layers.IPProtocolICMPv6,
		layers.LayerTypeIPv4: layers.IPProtocolIPv4, layers.LayerTypeIPv6: layers.IPProtocolIPv6,
	}
	if *protocol == 0 {
		*protocol = protocols[next]
	}
}

func eth(dst, src net.HardwareAddr) stack { return stack{&layers.Ethernet{DstMAC: dst, SrcMAC: src}} }

func (f *forge) toNode() stack { return eth(f.w.bridgeMAC, f.w.eMAC) }

func ipHeader(src, dst netip.Addr) stack {
	if dst.Is4() {
		return stack{&layers.IPv4{Version: 4, TTL: 64, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}}
	}
	return stack{&layers.IPv6{Version: 6, HopLimit: 64, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}}
}

func (f *forge) udpTo(port uint16) stack {
	return stack{
		&layers.UDP{SrcPort: layers.UDPPort(f.port()), DstPort: layers.UDPPort(port)},
		gopacket.Payload(f.marker()),
	}
}

func (f *forge) udp(src, dst netip.Addr) stack {
	return join([]stack{ipHeader(src, dst), f.udpTo(udpPort)})
}

func (f *forge) syn(src, dst netip.Addr) stack {
	return join([]stack{ipHeader(src, dst), {
		&layers.TCP{
			SrcPort: layers.TCPPort(f.port()),
			DstPort: tcpPort,
			SYN:     true,
			Window:  1024,
			Seq:     1,
		}, gopacket.Payload(f.marker()),
	}})
}

func (f *forge) echo(src, dst netip.Addr) stack {
	if dst.Is4() {
		return join([]stack{ipHeader(src, dst), {
			&layers.ICMPv4{
				TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0),
				Id:       f.port(),
			}, gopacket.Payload(f.marker()),
		}})
	}
	return join([]stack{ipHeader(src, dst), {
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)},
		&layers.ICMPv6Echo{Identifier: f.port()}, gopacket.Payload(f.marker()),
	}})
}

func (f *forge) payload(s stack) []byte {
	size := 40
	if _, ok := s[0].(*layers.IPv4); ok {
		size = 20
	}
	return f.serialize(s)[size:]
}

// fragments returns a UDP packet in two fragments. Each has 24 bytes of the payload, beginning with the marker.
func (f *forge) fragments(way stack, src, dst netip.Addr) [][]byte {
	long := append(append(f.marker(), "      "...), append(f.marker(), "      "...)...) // twice 24 bytes
	whole := f.payload(join([]stack{ipHeader(src, dst), {
		&layers.UDP{SrcPort: layers.UDPPort(f.port()), DstPort: udpPort}, gopacket.Payload(long),
	}}))
	return [][]byte{f.fragment(way, src, dst, whole[:32], 0, true), f.fragment(way, src, dst, whole[32:], 32, false)}
}

func (f *forge) fragment(way stack, src, dst netip.Addr, part []byte, offset int, more bool) []byte {
	if dst.Is4() {
		h := ipHeader(src, dst)[0].(*layers.IPv4)
		h.Id, h.Protocol, h.FragOffset = f.port(), layers.IPProtocolUDP, uint16(offset/8)
		if more {
			h.Flags = layers.IPv4MoreFragments
		}
		return f.serialize(way, stack{h, gopacket.Payload(part)})
	}
	return f.serialize(
		way,
		f.extension(src, dst, layers.IPProtocolIPv6Fragment, fragmentHeader(layers.IPProtocolUDP, offset, more, f.port()),
			part),
	)
}

func fragmentHeader(next layers.IPProtocol, offset int, more bool, id uint16) []byte {
	h := []byte{byte(next), 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(offset))
	if more {
		h[3] |= 1
	}
	binary.BigEndian.PutUint16(h[6:], id)
	return h
}

func (f *forge) extension(src, dst netip.Addr, next layers.IPProtocol, parts ...[]byte) stack {
	h := ipHeader(src, dst)[0].(*layers.IPv6)
	h.NextHeader = next
	s := stack{h}
	for _, p := range parts {
		s = append(s, gopacket.Payload(p))
	}
	return s
}

// arp returns an ARP packet. op is 1 for a request and 2 for a reply. inside is the sender's MAC in the ARP packet.
func (f *forge) arp(op uint16, inside net.HardwareAddr, sender, target netip.Addr) stack {
	return stack{&layers.ARP{
		AddrType:          layers.LinkTypeEthernet,
		Protocol:          layers.EthernetTypeIPv4,
		HwAddressSize:     6,
		ProtAddressSize:   4,
		Operation:         op,
		SourceHwAddress:   inside,
		SourceProtAddress: sender.AsSlice(),
		DstHwAddress:      make([]byte, 6),
		DstProtAddress:    target.AsSlice(),
	}, gopacket.Payload(f.marker())}
}

// discovery returns a message of neighbour discovery (RFC 4861). kind is the ICMPv6 type. After the body comes an
// option with the marker.
func (f *forge) discovery(src, dst netip.Addr, kind uint8, body []byte) stack {
	h := ipHeader(src, dst)[0].(*layers.IPv6)
	h.HopLimit = 255
	// Type 253 is for experiments (RFC 4727); the length 3 means 24 bytes.
	option := append([]byte{253, 3}, f.marker()...)
	return stack{
		h,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)},
		gopacket.Payload(body),
		gopacket.Payload(append(option, 0, 0, 0, 0)),
	}
}

// linkLayer returns an option of neighbour discovery. kind is 1 for the sender's MAC and 2 for the target's.
func linkLayer(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

func (f *forge) vxlan(src, dst netip.Addr, inner stack) stack {
	return join([]stack{
		ipHeader(src, dst),
		{&layers.UDP{SrcPort: layers.UDPPort(f.port()), DstPort: 4789}, &layers.VXLAN{ValidIDFlag: true, VNI: 88}},
		eth(f.w.tunnelMAC, f.w.peerTunnelMAC), inner,
	})
}
