package nflog

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func message(t testing.TB, number uint32, prefix string, etherType uint16, payload []byte) []byte {
	t.Helper()
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Bytes(attrHeader, append(binary.BigEndian.AppendUint16(nil, etherType), 2, 0))
	e.Bytes(attrPrefix, append([]byte(prefix), 0))
	e.Uint32(attrIndev, 3)
	e.Uint32(attrOutdev, 4)
	e.Uint32(attrPhysIndev, 5)
	e.Bytes(attrPayload, payload)
	e.Uint32(attrSeq, number)
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m := netlink.Message{Data: append([]byte{unix.AF_INET, 0, 0, 88}, data...)}
	m.Header = netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgPacket, Length: uint32(16 + len(m.Data))}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func serialize(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func syn(t testing.TB) []byte {
	return serialize(t,
		&layers.IPv4{
			Version: 4, TTL: 63, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 88, 0, 2}, DstIP: []byte{10, 88, 0, 3},
		},
		&layers.TCP{SrcPort: 40000, DstPort: 5432, SYN: true})
}

// TestGaps: a gap in the packets' numbers counts as a loss, also where the numbers begin again with 0.
func TestGaps(t *testing.T) {
	r := &Reader{next: 0xfffffffe}
	var got []uint32
	var lost uint64
	read := func(numbers ...uint32) {
		var b []byte
		for _, n := range numbers {
			b = append(b, message(t, n, "weir drop X", etherIPv4, syn(t))...)
		}
		lost += r.packets(b, &Packet{}, func(p *Packet) { got = append(got, p.number) })
	}
	read(0xfffffffe, 0xffffffff)
	read(0, 3)
	read(4)
	if lost != 2 || len(got) != 5 {
		t.Errorf("%d lost of %v, want the packets 1 and 2", lost, got)
	}
}

func TestParse(t *testing.T) {
	r := &Reader{}
	seen := 0
	r.packets(message(t, 0, "weir drop WEIR-IN-X", etherIPv4, syn(t)), &Packet{}, func(p *Packet) {
		seen++
		if string(p.Prefix) != "weir drop WEIR-IN-X" || p.EtherType != etherIPv4 || !bytes.Equal(p.Payload, syn(t)) ||
			p.In != 3 || p.Out != 4 || p.Port != 5 {
			t.Errorf("%+v", p)
		}
	})
	if seen != 1 {
		t.Errorf("%d packets", seen)
	}
}

func TestFlow(t *testing.T) {
	ip6 := func(next layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: next, SrcIP: netip.MustParseAddr("fd00::2").AsSlice(),
			DstIP: netip.MustParseAddr("fd00::3").AsSlice(),
		}
	}
	ip4 := func(proto layers.IPProtocol, offset uint16) *layers.IPv4 {
		return &layers.IPv4{
			Version: 4, Protocol: proto, SrcIP: []byte{10, 88, 0, 2}, DstIP: []byte{10, 88, 0, 3}, FragOffset: offset,
		}
	}
	udp := &layers.UDP{SrcPort: 1, DstPort: 53}
	options := append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, serialize(t, udp)...)
	fragment := func(offset byte) []byte {
		return append([]byte{17, 0, 0, offset, 0, 0, 0, 1}, serialize(t, udp)...)
	}
	for _, tc := range []struct {
		name      string
		etherType uint16
		packet    []byte
		src, dst  string
		proto     uint8
		ports     [2]uint16
		icmp      [2]uint8
	}{
		{"TCP", etherIPv4, syn(t), "10.88.0.2", "10.88.0.3", protoTCP, [2]uint16{40000, 5432}, [2]uint8{}},
		{
			"UDP behind IPv6 options", etherIPv6, append(serialize(t, ip6(0)), options...), "fd00::2", "fd00::3", protoUDP,
			[2]uint16{1, 53},
			[2]uint8{},
		},
		{
			"the first fragment", etherIPv6, append(serialize(t, ip6(44)), fragment(1)...), "fd00::2", "fd00::3", protoUDP,
			[2]uint16{1, 53},
			[2]uint8{},
		},
		{
			"a later fragment", etherIPv6, append(serialize(t, ip6(44)), fragment(8)...), "fd00::2", "fd00::3", protoUDP,
			[2]uint16{},
			[2]uint8{},
		},
		{
			"a later fragment of IPv4", etherIPv4, serialize(t, ip4(protoUDP, 5), gopacket.Payload{1, 2, 3, 4, 5, 6, 7, 8}),
			"10.88.0.2", "10.88.0.3", protoUDP,
			[2]uint16{},
			[2]uint8{},
		},
		{
			"an ICMP echo", etherIPv4, serialize(t, ip4(protoICMP, 0), &layers.ICMPv4{TypeCode: 0x0801}), "10.88.0.2",
			"10.88.0.3", protoICMP,
			[2]uint16{},
			[2]uint8{8, 1},
		},
		{
			"no header of UDP", etherIPv4, serialize(t, ip4(protoUDP, 0)), "10.88.0.2", "10.88.0.3", protoUDP,
			[2]uint16{},
			[2]uint8{},
		},
		{
			"ARP", etherARP, serialize(t, &layers.ARP{
				AddrType: 1, Protocol: etherIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
				SourceHwAddress: make([]byte, 6), SourceProtAddress: []byte{10, 88, 0, 2},
				DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 88, 0, 3},
			}), "10.88.0.2", "10.88.0.3", 0, [2]uint16{}, [2]uint8{},
		},
	} {
		f, ok := FlowOf(tc.etherType, tc.packet)
		if !ok || f.Source().String() != tc.src || f.Destination().String() != tc.dst || f.Proto != tc.proto ||
			[2]uint16{f.SrcPort, f.DstPort} != tc.ports || [2]uint8{f.Type, f.Code} != tc.icmp {
			t.Errorf("%s: %v from %s to %s: %+v", tc.name, ok, f.Source(), f.Destination(), f)
		}
		if f, ok := FlowOf(tc.etherType, tc.packet[:10]); ok || f.Source().IsValid() && f.Source() != f.Destination() {
			t.Errorf("%s, cut off: %v %+v", tc.name, ok, f)
		}
	}
}

// FuzzPackets: whatever the kernel sends, the reader doesn't panic, and passes on no more bytes than it has received.
func FuzzPackets(f *testing.F) {
	f.Add(message(f, 0, "weir drop X", etherIPv4, syn(f)))
	f.Add(append(message(f, 1, "", etherARP, nil), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &Reader{}
		r.packets(b, &Packet{}, func(p *Packet) {
			if len(p.Prefix)+len(p.Payload) > len(b) {
				t.Errorf("%d bytes of %d", len(p.Prefix)+len(p.Payload), len(b))
			}
			_, _ = FlowOf(p.EtherType, p.Payload)
		})
	})
}

// FuzzFlow: if both FlowOf and the library gopacket can read a packet, they return the same addresses and TCP port.
func FuzzFlow(f *testing.F) {
	f.Add(true, syn(f))
	f.Add(false, make([]byte, 60))
	f.Fuzz(func(t *testing.T, four bool, b []byte) {
		etherType, first := uint16(etherIPv6), gopacket.Decoder(layers.LayerTypeIPv6)
		if four {
			etherType, first = etherIPv4, layers.LayerTypeIPv4
		}
		got, ok := FlowOf(etherType, b)
		p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
		ip := p.NetworkLayer()
		if !ok || ip == nil || p.ErrorLayer() != nil { // FlowOf or gopacket can't read the packet
			return
		}
		src, dst := ip.NetworkFlow().Endpoints()
		if !bytes.Equal(src.Raw(), got.Source().AsSlice()) || !bytes.Equal(dst.Raw(), got.Destination().AsSlice()) {
			t.Errorf("from %s to %s, gopacket: %s", got.Source(), got.Destination(), ip.NetworkFlow())
		}
		if tcp, is := p.TransportLayer().(*layers.TCP); is && got.Proto == protoTCP && got.DstPort != 0 &&
			got.DstPort != uint16(tcp.DstPort) {
			t.Errorf("port %d, gopacket: %d", got.DstPort, tcp.DstPort)
		}
	})
}

// BenchmarkParse compares how fast this package and the library mdlayher/netlink parse messages.
func BenchmarkParse(b *testing.B) {
	var all []byte
	for i := range uint32(perMessage) {
		all = append(all, message(b, i, "weir drop WEIR-IN-4STFVNXYVR6HKU33", etherIPv4, syn(b))...)
	}
	n := 0
	count := func(etherType uint16, packet []byte) {
		if f, ok := FlowOf(etherType, packet); ok && f.DstPort == 5432 {
			n++
		}
	}
	r := &Reader{}
	for name, read := range map[string]func(){
		"own": func() {
			r.packets(all, &Packet{}, func(p *Packet) { count(p.EtherType, p.Payload) })
		},
		"library": func() {
			for rest := all; len(rest) > 0; {
				size := (binary.NativeEndian.Uint32(rest) + 3) &^ 3
				var m netlink.Message
				if err := m.UnmarshalBinary(rest[:size]); err != nil {
					b.Fatal(err)
				}
				attrs, err := netlink.NewAttributeDecoder(m.Data[4:])
				if err != nil {
					b.Fatal(err)
				}
				for attrs.Next() {
					if attrs.Type() == attrPayload {
						count(etherIPv4, attrs.Bytes())
					}
				}
				rest = rest[size:]
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			n = 0
			for range b.N / perMessage {
				read()
			}
			if n != b.N/perMessage*perMessage {
				b.Errorf("%d packets of %d", n, b.N)
			}
		})
	}
}
