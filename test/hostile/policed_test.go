package hostile

import (
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func (f *forge) tunnels() {
	w := f.w
	local, remote := w.underlay()
	f.begin("tunnels between nodes", "")
	for _, src := range []name[netip.Addr]{
		{"itself", f.podOf(w.e4, w.e6)},
		{"another node", remote},
		{"this node", local},
	} {
		for _, dst := range []name[netip.Addr]{
			{"this node", local},
			{"another node", remote},
			{"the gateway", f.podOf(gateway4, gateway6)},
			{"the victim", f.podOf(w.victim4, w.victim6)},
		} {
			for _, in := range []name[func() stack]{
				{
					"UDP of another node's pod to the victim",
					func() stack { return f.udp(f.peerPod(), f.podOf(w.victim4, w.victim6)) },
				},
				{
					"SYN of another node's pod to the victim",
					func() stack { return f.syn(f.peerPod(), f.podOf(w.victim4, w.victim6)) },
				},
				{
					"UDP of the victim to another node's pod",
					func() stack { return f.udp(f.podOf(w.victim4, w.victim6), f.peerPod()) },
				},
				{"router advertisement", func() stack { return f.routerAdvertisement(eui64(w.peerTunnelMAC)) }},
			} {
				put := f.forged
				if src.text == "itself" {
					put = func(name string, stacks ...stack) { f.own(name, stacks...) }
				}
				put(fmt.Sprintf("from %s to %s: %s", src.text, dst.text, in.text), f.toNode(),
					f.vxlan(src.value, dst.value, in.value()))
			}
		}
	}
	f.begin("other tunnels", "")
	six := func() []byte { return f.serialize(f.udp(w.victim6, w.third6)) }
	four := func() []byte { return f.serialize(f.udp(w.victim4, w.third4)) }
	behind := func(inside func() []byte, header ...byte) func() []byte {
		return func() []byte { return append(header[:len(header):len(header)], inside()...) }
	}
	for _, dst4 := range []name[netip.Addr]{
		{"the gateway", gateway4},
		{"the uplink", uplink4},
		{"another node", peer4},
		{"the victim", w.victim4},
	} {
		for _, x := range []struct {
			text     string
			protocol layers.IPProtocol
			bytes    func() []byte
		}{
			{"IPv4 in IPv4", 4, four},
			{"IPv6 in IPv4", 41, six},
			{"GRE", 47, behind(four, 0, 0, 8, 0)},
			{"ERSPAN", 47, behind(four, 0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, 0, 0, 0, 0, 0)},
			{"PPTP", 47, behind(four, 0x30, 1, 0x88, 0x0b, 0, 4, 0, 1)},
			{"ESP", 50, behind(f.marker, 0, 0, 0, 1, 0, 0, 0, 1)},
			{"AH", 51, behind(f.marker, 17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)},
			{"MPLS in IP", 137, behind(four, 0, 0, 1, 64)},
			{"L2TP", 115, behind(f.marker, 0, 0, 0, 1)},
			{"SCTP", 132, behind(f.marker, 0x4e, 0x20, 0x1e, 0x61, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1)},
			{"UDP-Lite", 136, behind(f.marker, 0x4e, 0x20, 0x1e, 0x61, 0, 8, 0, 0)},
			{"DCCP", 33, behind(f.marker, 0x4e, 0x20, 0x1e, 0x61, 4, 0, 0, 0, 0, 0, 0, 1)},
			{"PIM", 103, behind(f.marker, 0x20, 0, 0, 0)},
			{"VRRP", 112, behind(f.marker, 0x21, 1, 100, 1, 0, 1, 0, 0)},
			{"OSPF", 89, behind(f.marker, 2, 1, 0, 44)},
			{"protocol 255", 255, f.marker},
		} {
			h := ipHeader(w.e4, dst4.value)[0].(*layers.IPv4)
			h.Protocol = x.protocol
			f.own(x.text+" to "+dst4.text, f.toNode(), stack{h, gopacket.Payload(x.bytes())})
		}
		for _, port := range []uint16{6081, 8472, 4790, 5555, 6080, 1701, 51820, 500, 4500, 2152, 3784} {
			f.own(fmt.Sprintf("UDP port %d to %s", port, dst4.text), f.toNode(), ipHeader(w.e4, dst4.value), f.udpTo(port))
		}
	}
	for _, dst := range []name[netip.Addr]{
		{"the gateway", gateway6},
		{"the uplink", uplink6},
		{"another node", peer6},
		{"the victim", w.victim6},
	} {
		for _, x := range []struct {
			text     string
			protocol layers.IPProtocol
			bytes    func() []byte
		}{
			{"IPv4 in IPv6", 4, four},
			{"IPv6 in IPv6", 41, six},
			{"GRE over IPv6", 47, behind(four, 0, 0, 8, 0)},
			{"ESP over IPv6", 50, behind(f.marker, 0, 0, 0, 1, 0, 0, 0, 1)},
			{"Ethernet in IPv6", 143, behind(four, 0, 0)},
			{"SCTP over IPv6", 132, behind(f.marker, 0x4e, 0x20, 0x1e, 0x61, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1)},
		} {
			f.own(x.text+" to "+dst.text, f.toNode(), f.extension(w.e6, dst.value, x.protocol, x.bytes()))
		}
	}
}

func (f *forge) destinations() {
	w := f.w
	all := []name[[2]netip.Addr]{
		{"the victim", [2]netip.Addr{w.e4, w.victim4}},
		{"the gateway", [2]netip.Addr{w.e4, gateway4}},
		{"the uplink", [2]netip.Addr{w.e4, uplink4}},
		{"127.0.0.1", [2]netip.Addr{w.e4, netip.MustParseAddr("127.0.0.1")}},
		{"127.1.2.3", [2]netip.Addr{w.e4, netip.MustParseAddr("127.1.2.3")}},
		{"0.0.0.0", [2]netip.Addr{w.e4, netip.IPv4Unspecified()}},
		{"the outside", [2]netip.Addr{w.e4, outside4}},
		{"another node", [2]netip.Addr{w.e4, peer4}},
		{"another node's pod", [2]netip.Addr{w.e4, peerPod4}},
		{"a free address", [2]netip.Addr{w.e4, free4}},
		{"the network's address", [2]netip.Addr{w.e4, network4}},
		{"the network's broadcast", [2]netip.Addr{w.e4, broadcast4}},
		{"broadcast", [2]netip.Addr{w.e4, netip.MustParseAddr("255.255.255.255")}},
		{"all systems", [2]netip.Addr{w.e4, netip.MustParseAddr("224.0.0.1")}},
		{"mDNS", [2]netip.Addr{w.e4, netip.MustParseAddr("224.0.0.251")}},
		{"a group", [2]netip.Addr{w.e4, netip.MustParseAddr("239.1.2.3")}},
		{"a metadata service", [2]netip.Addr{w.e4, netip.MustParseAddr("169.254.169.254")}},
		{"itself", [2]netip.Addr{w.e4, w.e4}},
		{"the victim over IPv6", [2]netip.Addr{w.e6, w.victim6}},
		{"the gateway over IPv6", [2]netip.Addr{w.e6, gateway6}},
		{"the uplink over IPv6", [2]netip.Addr{w.e6, uplink6}},
		{"::1", [2]netip.Addr{w.e6, netip.IPv6Loopback()}},
		{"::", [2]netip.Addr{w.e6, netip.IPv6Unspecified()}},
		{"the bridge's link-local address", [2]netip.Addr{w.e6, eui64(w.bridgeMAC)}},
		{"its port's link-local address", [2]netip.Addr{w.e6, eui64(w.portMAC)}},
		{"the outside over IPv6", [2]netip.Addr{w.e6, outside6}},
		{"another node over IPv6", [2]netip.Addr{w.e6, peer6}},
		{"another node's pod over IPv6", [2]netip.Addr{w.e6, peerPod6}},
		{"a free address over IPv6", [2]netip.Addr{w.e6, free6}},
		{"all nodes", [2]netip.Addr{w.e6, netip.MustParseAddr("ff02::1")}},
		{"all nodes of this host", [2]netip.Addr{w.e6, netip.MustParseAddr("ff01::1")}},
		{"all routers of the site", [2]netip.Addr{w.e6, netip.MustParseAddr("ff05::2")}},
		{"the victim's IPv4 address, mapped", [2]netip.Addr{w.e6, netip.AddrFrom16(w.victim4.As16())}},
	}
	for _, to := range all {
		src, dst := to.value[0], to.value[1]
		f.begin("own sender, a destination that is denied", "")
		if src == dst {
			f.begin("own sender, to itself", "a pod may reach itself through its Service")
		}
		if dst.IsLinkLocalUnicast() && dst.Is6() {
			f.begin("own sender, a destination without a route", "the node answers that there is no route")
		}
		f.own("UDP to "+to.text, f.toNode(), f.udp(src, dst))
		f.own("SYN to "+to.text, f.toNode(), f.syn(src, dst))
		f.own("echo request to "+to.text, f.toNode(), f.echo(src, dst))
		f.own("UDP to the closed port 9 of "+to.text, f.toNode(), ipHeader(src, dst), f.udpTo(9))
		f.begin("own sender, TTL or hop limit used up", "the node answers that the time is exceeded")
		hops := ipHeader(src, dst)
		switch h := hops[0].(type) {
		case *layers.IPv4:
			h.TTL = 1
		case *layers.IPv6:
			h.HopLimit = 1
		}
		f.own("UDP to "+to.text, f.toNode(), hops, f.udpTo(udpPort))
	}
	f.begin("own sender, larger than the route's MTU", "the node answers how large a packet may be")
	h := ipHeader(w.e4, peerPod4)[0].(*layers.IPv4)
	h.Flags = layers.IPv4DontFragment
	long := func() gopacket.Payload { return append(f.marker(), make([]byte, 1430)...) }
	f.own(
		"to another node's pod",
		f.toNode(),
		stack{h, &layers.UDP{SrcPort: layers.UDPPort(f.port()), DstPort: udpPort}, long()},
	)
	f.own(
		"to another node's pod over IPv6",
		f.toNode(),
		ipHeader(w.e6, peerPod6),
		stack{&layers.UDP{SrcPort: layers.UDPPort(f.port()), DstPort: udpPort}, long()},
	)
	f.begin("other ICMP", "")
	for kind := range 256 {
		if kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12 {
			continue // ICMP errors have their own class
		}
		for _, to := range []name[netip.Addr]{{"the gateway", gateway4}, {"the victim", w.victim4}} {
			f.own(fmt.Sprintf("ICMPv4 type %d to %s", kind, to.text), f.toNode(), ipHeader(w.e4, to.value), stack{
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(uint8(kind), 0)}, gopacket.Payload(f.marker()),
			})
		}
		if kind < 5 || kind >= 133 && kind <= 137 {
			continue // ICMP errors and neighbour discovery have their own classes
		}
		for _, to := range []name[netip.Addr]{{"the gateway", gateway6}, {"the victim", w.victim6}} {
			f.own(fmt.Sprintf("ICMPv6 type %d to %s", kind, to.text), f.toNode(), ipHeader(w.e6, to.value), stack{
				&layers.ICMPv6{
					TypeCode: layers.CreateICMPv6TypeCode(uint8(kind), 0),
				}, gopacket.Payload([]byte{0, 0, 0, 0}), gopacket.Payload(f.marker()),
			})
		}
	}
	f.begin("IGMP, MLD and DHCP", "")
	igmp := func(kind byte, group netip.Addr) []byte {
		return append(append([]byte{kind, 0, 0, 0}, group.AsSlice()...), f.marker()...)
	}
	for _, kind := range []byte{0x11, 0x12, 0x16, 0x17, 0x22} {
		h := ipHeader(w.e4, netip.MustParseAddr("224.0.0.1"))[0].(*layers.IPv4)
		h.Protocol, h.TTL = layers.IPProtocolIGMP, 1
		f.own(
			fmt.Sprintf("IGMP %#x", kind),
			eth(groupMAC4, w.eMAC),
			stack{h, gopacket.Payload(igmp(kind, netip.MustParseAddr("239.1.2.3")))},
		)
	}
	group := netip.MustParseAddr("ff02::16")
	f.forged(
		"MLD",
		eth(groupMAC6, w.eMAC),
		f.extension(
			eui64(w.eMAC),
			group,
			layers.IPProtocolIPv6HopByHop,
			[]byte{58, 0, 5, 2, 0, 0, 1, 0},
			f.payload(f.discovery(eui64(w.eMAC), group, 143, make([]byte, 4))),
		),
	)
	f.forged(
		"DHCP",
		eth(broadcastMAC, w.eMAC),
		ipHeader(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")),
		f.udpTo(67),
	)
	f.forged("DHCPv6", eth(groupMAC6, w.eMAC), ipHeader(eui64(w.eMAC), netip.MustParseAddr("ff02::1:2")), f.udpTo(547))
}

func (f *forge) connections(flows []flow) {
	w := f.w
	f.begin("TCP without a connection", "")
	for flags := range 64 {
		for _, a := range [][2]netip.Addr{{w.e4, w.victim4}, {w.e4, gateway4}, {w.e6, w.victim6}, {w.e6, gateway6}} {
			f.own(fmt.Sprintf("flags %#x to %s", flags, a[1]), f.toNode(), ipHeader(a[0], a[1]), stack{&layers.TCP{
				SrcPort: layers.TCPPort(f.port()), DstPort: tcpPort, Window: 1024,
				FIN: flags&1 != 0, SYN: flags&2 != 0, RST: flags&4 != 0, PSH: flags&8 != 0, ACK: flags&16 != 0, URG: flags&32 != 0,
			}, gopacket.Payload(f.marker())})
		}
	}
	f.begin("packets into connections of others", "")
	for _, c := range flows {
		for _, d := range []struct {
			text     string
			from, to netip.AddrPort
		}{{"to the victim", c.to, c.from}, {"to the other end", c.from, c.to}} {
			for _, src := range []name[netip.Addr]{{"forged", d.from.Addr()}, {"own", f.ownOf(d.from.Addr())}} {
				put := f.forged
				if src.text == "own" {
					put = func(name string, stacks ...stack) { f.own(name, stacks...) }
				}
				transport := stack{
					&layers.UDP{SrcPort: layers.UDPPort(d.from.Port()), DstPort: layers.UDPPort(d.to.Port())},
					gopacket.Payload(f.marker()),
				}
				if c.protocol == layers.IPProtocolTCP {
					transport = stack{
						&layers.TCP{SrcPort: layers.TCPPort(d.from.Port()), DstPort: layers.TCPPort(d.to.Port()), RST: true, Seq: 1},
						gopacket.Payload(f.marker()),
					}
				}
				put(fmt.Sprintf("%s, %s, %s sender", c.text, d.text, src.text), f.toNode(), ipHeader(src.value, d.to.Addr()),
					transport)
			}
		}
	}
}

func (f *forge) ownOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return f.w.e4
	}
	return f.w.e6
}

func (f *forge) malformed() {
	w := f.w
	f.begin("malformed packets", "")
	packet := func(change func(p []byte) []byte) []byte {
		p := f.serialize(f.udp(w.e4, w.victim4))
		return f.serialize(raw(w.bridgeMAC, w.eMAC, 0x0800, change(p)))
	}
	for _, x := range []name[func(p []byte) []byte]{
		{"IPv4 of version 5", func(p []byte) []byte { p[0] = 0x55; sumHeader(p); return p }},
		{"IPv4 of version 6", func(p []byte) []byte { p[0] = 0x65; return p }},
		{"a header of 16 bytes", func(p []byte) []byte { p[0] = 0x44; return p }},
		{"a header beyond the packet", func(p []byte) []byte { p[0] = 0x4f; return p }},
		{"a wrong checksum", func(p []byte) []byte { p[10] ^= 0xff; return p }},
		{"a length beyond the frame", func(p []byte) []byte { p[2], p[3] = 9, 0; sumHeader(p); return p }},
		{"a length below the header", func(p []byte) []byte { p[2], p[3] = 0, 10; sumHeader(p); return p }},
		{"an end within the header", func(p []byte) []byte { return p[:15] }},
		{"an end within UDP", func(p []byte) []byte { return p[:24] }},
		{"the reserved flag", func(p []byte) []byte { p[6] |= 0x80; sumHeader(p); return p }},
		{"a TTL of 0", func(p []byte) []byte { p[8] = 0; sumHeader(p); return p }},
		{"nothing", func([]byte) []byte { return nil }},
	} {
		one := f.put(x.text, w.has4, packet(x.value))
		if one.own {
			one.allowed = "the node says that the time is over"
		}
	}
	packet6 := func(change func(p []byte) []byte) []byte {
		p := f.serialize(f.udp(w.e6, w.victim6))
		return f.serialize(raw(w.bridgeMAC, w.eMAC, 0x86dd, change(p)))
	}
	for _, x := range []name[func(p []byte) []byte]{
		{"IPv6 of version 4", func(p []byte) []byte { p[0] = 0x40; return p }},
		{"a payload beyond the frame", func(p []byte) []byte { p[4] = 9; return p }},
		{"no payload, and more", func(p []byte) []byte { p[4], p[5] = 0, 0; return p }},
		{"an end within the IPv6 header", func(p []byte) []byte { return p[:30] }},
		{"a hop limit of 0", func(p []byte) []byte { p[7] = 0; return p }},
		{"an IPv6 packet of nothing", func([]byte) []byte { return nil }},
	} {
		one := f.put(x.text, w.has6, packet6(x.value))
		if one.own {
			one.allowed = "the node says that the time is over"
		}
	}
	for size := range 64 {
		f.put(
			fmt.Sprintf("IPv4's type and %d zeros", size),
			false,
			f.serialize(raw(w.bridgeMAC, w.eMAC, 0x0800, make([]byte, size))),
		)
	}
}
