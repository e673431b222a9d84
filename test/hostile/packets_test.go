package hostile

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func (f *forge) routerAdvertisement(src netip.Addr) stack {
	body := []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0} // hop limit, and a router's lifetime of 1800 s
	prefix := append(
		[]byte{3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0},
		netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
	body = append(append(body, prefix...), linkLayer(1, f.w.eMAC)...)
	return f.discovery(src, netip.MustParseAddr("ff02::1"), layers.ICMPv6TypeRouterAdvertisement, body)
}

func (f *forge) solicitation(src, target netip.Addr) stack {
	body := append(append(make([]byte, 4), target.AsSlice()...), linkLayer(1, f.w.eMAC)...)
	return f.discovery(src, target, layers.ICMPv6TypeNeighborSolicitation, body)
}

func (f *forge) advertisement(src, dst, target netip.Addr) stack {
	body := append(append([]byte{0xe0, 0, 0, 0}, target.AsSlice()...), linkLayer(2, f.w.eMAC)...)
	return f.discovery(src, dst, layers.ICMPv6TypeNeighborAdvertisement, body)
}

func (f *forge) redirect(src, dst, target, destination netip.Addr) stack {
	body := append(append(make([]byte, 4), target.AsSlice()...), destination.AsSlice()...)
	return f.discovery(src, dst, layers.ICMPv6TypeRedirect, body)
}

// neighbourDiscovery forges messages that must be dropped even if they come from the hostile pod's own MAC and
// address.
func (f *forge) neighbourDiscovery() {
	w := f.w
	all := netip.MustParseAddr("ff02::1")
	f.begin("neighbour discovery", "")
	for _, src := range []name[netip.Addr]{
		{"its own address", w.e6},
		{"its link-local address", eui64(w.eMAC)},
		{"the gateway", gateway6},
		{"no address", netip.IPv6Unspecified()},
		{"the router outside", outside6},
	} {
		for _, way := range []name[stack]{
			{"the bridge", f.toNode()},
			{"all nodes", eth(groupMAC6, w.eMAC)},
			{"the victim's MAC", eth(w.victimMAC, w.eMAC)},
		} {
			to := " from " + src.text + " to " + way.text
			f.forged(
				"router solicitation"+to,
				way.value,
				f.discovery(src.value, netip.MustParseAddr("ff02::2"), layers.ICMPv6TypeRouterSolicitation, make([]byte, 4)),
			)
			f.forged("router advertisement"+to, way.value, f.routerAdvertisement(src.value))
			f.forged("solicitation of the gateway"+to, way.value, f.solicitation(src.value, gateway6))
			f.forged("solicitation of the victim"+to, way.value, f.solicitation(src.value, w.victim6))
			f.forged("advertisement of a free address"+to, way.value, f.advertisement(src.value, gateway6, free6))
			f.forged("advertisement of the victim to all"+to, way.value, f.advertisement(src.value, all, w.victim6))
			f.forged("redirect"+to, way.value, f.redirect(src.value, gateway6, w.e6, outside6))
		}
	}
	f.begin("neighbour discovery behind other headers", "")
	for _, src := range []netip.Addr{w.e6, eui64(w.eMAC)} {
		advertisement := func() []byte { return f.payload(f.routerAdvertisement(src)) }
		f.forged(
			"behind hop-by-hop options, "+src.String(),
			f.toNode(),
			f.extension(src, all, layers.IPProtocolIPv6HopByHop, padding(layers.IPProtocolICMPv6), advertisement()),
		)
		f.forged(
			"behind destination options, "+src.String(),
			f.toNode(),
			f.extension(src, all, layers.IPProtocolIPv6Destination, padding(layers.IPProtocolICMPv6), advertisement()),
		)
		f.forged(
			"behind both, "+src.String(),
			f.toNode(),
			f.extension(
				src,
				all,
				layers.IPProtocolIPv6HopByHop,
				padding(layers.IPProtocolIPv6Destination),
				padding(layers.IPProtocolICMPv6),
				advertisement(),
			),
		)
		f.forged(
			"in an atomic fragment, "+src.String(),
			f.toNode(),
			f.extension(
				src,
				all,
				layers.IPProtocolIPv6Fragment,
				fragmentHeader(layers.IPProtocolICMPv6, 0, false, f.port()),
				advertisement(),
			),
		)
	}
}

// padding returns an options header of eight bytes that has only padding.
func padding(next layers.IPProtocol) []byte { return []byte{byte(next), 0, 1, 4, 0, 0, 0, 0} }

func hopByHop(marker []byte, option byte) []byte {
	return append(
		[]byte{byte(layers.IPProtocolNoNextHeader), 2, option, byte(len(marker))},
		append(marker, 1, 0)...) // the whole header has 24 bytes
}

func (f *forge) errors(flows []flow) {
	w := f.w
	quote := func(protocol layers.IPProtocol, from, to netip.AddrPort) []byte {
		if protocol == layers.IPProtocolTCP {
			return f.serialize(ipHeader(from.Addr(), to.Addr()), stack{
				&layers.TCP{
					SrcPort: layers.TCPPort(from.Port()),
					DstPort: layers.TCPPort(to.Port()),
					ACK:     true,
					Seq:     1,
				}, gopacket.Payload(f.marker()),
			})
		}
		return f.serialize(ipHeader(from.Addr(), to.Addr()), stack{
			&layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}, gopacket.Payload(f.marker()),
		})
	}
	type about struct {
		text     string
		protocol layers.IPProtocol
		from, to netip.AddrPort // source and destination of the packet in the ICMP error
	}
	var all []about
	for _, c := range flows {
		all = append(
			all,
			about{c.text + ", to the victim", c.protocol, c.from, c.to},
			about{c.text + ", to the other end", c.protocol, c.to, c.from},
		)
		if c.to.Addr() == outside4 {
			all = append(
				all,
				about{c.text + ", masqueraded, to the other end", c.protocol, c.to, netip.AddrPortFrom(uplink4, c.from.Port())},
			)
		}
		if c.to.Addr() == outside6 {
			all = append(
				all,
				about{c.text + ", masqueraded, to the other end", c.protocol, c.to, netip.AddrPortFrom(uplink6, c.from.Port())},
			)
		}
	}
	local, remote := w.underlay()
	all = append(
		all,
		about{
			"the tunnel, to the node", layers.IPProtocolUDP, netip.AddrPortFrom(local, 50000),
			netip.AddrPortFrom(remote, 4789),
		},
		about{
			"the tunnel, to the other node",
			layers.IPProtocolUDP,
			netip.AddrPortFrom(remote, 50000),
			netip.AddrPortFrom(local, 4789),
		},
	)
	for _, a := range all {
		if a.from.Addr().Is4() {
			f.begin("ICMPv4 errors", "")
			for _, kind := range []struct {
				text       string
				kind, code uint8
				rest       [4]byte
			}{
				{"network unreachable", 3, 0, [4]byte{}},
				{"host unreachable", 3, 1, [4]byte{}},
				{"protocol unreachable", 3, 2, [4]byte{}},
				{"port unreachable", 3, 3, [4]byte{}},
				{"fragmentation needed", 3, 4, [4]byte{0, 0, 2, 40}},
				{"source route failed", 3, 5, [4]byte{}},
				{"administratively prohibited", 3, 13, [4]byte{}},
				{"source quench", 4, 0, [4]byte{}},
				{"redirect", 5, 1, w.e4.As4()},
				{"time exceeded", 11, 0, [4]byte{}},
				{"parameter problem", 12, 0, [4]byte{}},
			} {
				build := func() stack {
					return stack{
						&layers.ICMPv4{
							TypeCode: layers.CreateICMPv4TypeCode(kind.kind, kind.code),
							Id:       binary.BigEndian.Uint16(kind.rest[:]), Seq: binary.BigEndian.Uint16(kind.rest[2:]),
						}, gopacket.Payload(quote(a.protocol, a.from, a.to)),
					}
				}
				f.own(kind.text+", "+a.text+", its own sender", f.toNode(), ipHeader(w.e4, a.from.Addr()), build())
				f.forged(
					kind.text+", "+a.text+", the sender that it should have",
					f.toNode(),
					ipHeader(a.to.Addr(), a.from.Addr()),
					build(),
				)
				f.forged(kind.text+", "+a.text+", from the gateway", f.toNode(), ipHeader(gateway4, a.from.Addr()), build())
			}
			continue
		}
		f.begin("ICMPv6 errors", "")
		for _, kind := range []struct {
			text       string
			kind, code uint8
			rest       []byte
		}{
			{"no route", 1, 0, make([]byte, 4)},
			{"administratively prohibited", 1, 1, make([]byte, 4)},
			{"port unreachable", 1, 4, make([]byte, 4)},
			{"packet too big", 2, 0, []byte{0, 0, 5, 0}},
			{"time exceeded", 3, 0, make([]byte, 4)},
			{"parameter problem", 4, 1, make([]byte, 4)},
			{"of a type to come", 100, 0, make([]byte, 4)},
		} {
			build := func() stack {
				return stack{
					&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind.kind, kind.code)},
					gopacket.Payload(kind.rest), gopacket.Payload(quote(a.protocol, a.from, a.to)),
				}
			}
			f.own(kind.text+", "+a.text+", its own sender", f.toNode(), ipHeader(w.e6, a.from.Addr()), build())
			f.forged(
				kind.text+", "+a.text+", the sender that it should have",
				f.toNode(),
				ipHeader(a.to.Addr(), a.from.Addr()),
				build(),
			)
			f.forged(kind.text+", "+a.text+", from the gateway", f.toNode(), ipHeader(gateway6, a.from.Addr()), build())
		}
	}
}

func (f *forge) fragmentClasses() {
	w := f.w
	for _, to := range []name[[3]netip.Addr]{
		{"the victim", [3]netip.Addr{w.e4, w.victim4, w.third4}},
		{"the gateway", [3]netip.Addr{w.e4, gateway4, w.third4}},
		{"the outside", [3]netip.Addr{w.e4, outside4, w.third4}},
		{"the victim over IPv6", [3]netip.Addr{w.e6, w.victim6, w.third6}},
		{"the gateway over IPv6", [3]netip.Addr{w.e6, gateway6, w.third6}},
		{"the outside over IPv6", [3]netip.Addr{w.e6, outside6, w.third6}},
	} {
		src, dst, other := to.value[0], to.value[1], to.value[2]
		own := f.ownName(ipHeader(src, dst))
		f.begin("fragments", "")
		both := f.fragments(f.toNode(), src, dst)
		f.put("both to "+to.text, own, both...)
		both = f.fragments(f.toNode(), src, dst)
		f.put("the last first to "+to.text, own, both[1], both[0])
		both = f.fragments(f.toNode(), src, dst)
		f.put("the same twice to "+to.text, own, both[0], both[0], both[1])
		first := f.fragments(f.toNode(), src, dst)[0]
		overlap := f.fragment(f.toNode(), src, dst, f.marker()[:16], 16, true)
		f.put("overlapping to "+to.text, own, first, overlap, f.fragments(f.toNode(), src, dst)[1])
		header := f.payload(f.udp(src, dst))
		f.put(
			"eight bytes first to "+to.text,
			own,
			f.fragment(f.toNode(), src, dst, header[:8], 0, true),
			f.fragment(f.toNode(), src, dst, header[8:], 8, false),
		)
		f.put(
			"beyond 65535 to "+to.text,
			own,
			f.fragment(f.toNode(), src, dst, append(f.marker(), make([]byte, 100)...), 65528, false),
		)
		f.put("atomic to "+to.text, own, f.atomic(src, dst))
		f.begin("incomplete datagrams", "the node answers that the other fragments did not come in time")
		f.put("the first to "+to.text, own, f.fragments(f.toNode(), src, dst)[0]).waits = true
		f.put("the last to "+to.text, own, f.fragments(f.toNode(), src, dst)[1]).waits = true
		f.begin("forged fragments", "")
		f.put("of a pod to "+to.text, false, f.fragments(f.toNode(), other, dst)...)
		f.put("the first of a pod to "+to.text, false, f.fragments(f.toNode(), other, dst)[0]).waits = true
		f.put("the second of a pod to "+to.text, false, f.fragments(f.toNode(), other, dst)[1]).waits = true
	}
}

// atomic returns a whole packet. In IPv6 it nevertheless has a fragment header (RFC 6946).
func (f *forge) atomic(src, dst netip.Addr) []byte {
	return f.fragment(f.toNode(), src, dst, f.payload(f.udp(src, dst)), 0, false)
}

func (f *forge) options4() {
	w := f.w
	f.begin("IPv4 options", "")
	address := func(a netip.Addr) []byte { return a.AsSlice() }
	route := func(kind byte, hops ...netip.Addr) []byte {
		o := []byte{1, kind, byte(3 + 4*len(hops)), 4}
		for _, h := range hops {
			o = append(o, address(h)...)
		}
		return o
	}
	for _, o := range []name[[]byte]{
		{"loose source route to the victim", route(0x83, w.victim4)},
		{"strict source route to the victim", route(0x89, w.victim4)},
		{"loose source route to the outside", route(0x83, uplink4, outside4)},
		{"a source route that is over", append([]byte{1, 0x83, 7, 8}, address(w.victim4)...)},
		{"record route", []byte{1, 7, 7, 4, 0, 0, 0, 0}},
		{"record route, full", []byte{1, 7, 7, 8, 0, 0, 0, 0}},
		{"timestamps", []byte{0x44, 8, 5, 0, 0, 0, 0, 0}},
		{"timestamps, overflown", []byte{0x44, 8, 9, 0xf0, 0, 0, 0, 0}},
		{"router alert", []byte{0x94, 4, 0, 0}},
		{"a CIPSO label", []byte{0x86, 10, 0, 0, 0, 1, 1, 4, 0, 0, 0, 0}},
		{"security", []byte{0x82, 4, 0, 0}},
		{"stream", []byte{0x88, 4, 0, 0}},
		{"an unknown option", []byte{0x9e, 4, 0, 0}},
		{"an option longer than the header", []byte{0x9e, 40, 0, 0}},
		{"an option of length 0", []byte{0x83, 0, 0, 0}},
		{"an end, and more", []byte{0, 0x83, 7, 4}},
	} {
		for _, from := range []name[netip.Addr]{{"itself", w.e4}, {"the victim", w.victim4}} {
			for _, to := range []name[netip.Addr]{
				{"the gateway", gateway4},
				{"the victim", w.victim4},
				{"the outside", outside4},
			} {
				h := ipHeader(from.value, to.value)[0].(*layers.IPv4)
				packet := f.serialize(stack{h}, f.udpTo(udpPort))
				packet = withOptions(packet, o.value)
				own := f.w.has4 && from.value == w.e4
				one := f.put(
					fmt.Sprintf("%s, from %s to %s", o.text, from.text, to.text),
					own,
					f.serialize(raw(w.bridgeMAC, w.eMAC, 0x0800, packet)),
				)
				if own {
					one.allowed = "the node says that the options are wrong"
				}
			}
		}
	}
}

func withOptions(packet, options []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	p := append(append(append([]byte{}, packet[:20]...), options...), packet[20:]...)
	p[0] = 0x40 | byte((20+len(options))/4)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	sumHeader(p)
	return p
}

func sumHeader(p []byte) {
	size := int(p[0]&15) * 4
	p[10], p[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < size; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
}

func (f *forge) extensions6() {
	w := f.w
	const (
		hop, dest, routing, noNext = layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Destination,
			layers.IPProtocolIPv6Routing, layers.IPProtocolNoNextHeader
		udp = layers.IPProtocolUDP
	)
	routeBy := func(kind byte, hops ...netip.Addr) []byte {
		h := []byte{byte(udp), byte(2 * len(hops)), kind, byte(len(hops)), 0, 0, 0, 0}
		if kind == 4 {
			h[4] = byte(len(hops) - 1) // index of the last entry (RFC 8754)
		}
		for _, a := range hops {
			h = append(h, a.AsSlice()...)
		}
		return h
	}
	option := func(next layers.IPProtocol, kind byte, data ...byte) []byte {
		h := append([]byte{byte(next), 0, kind, byte(len(data))}, data...)
		for len(h) < 8 {
			h = append(h, 0)
		}
		return h
	}
	for _, x := range []struct {
		text  string
		next  layers.IPProtocol
		parts [][]byte
		// answers is true if the kernel may answer such a packet with an ICMPv6 error before it checks policies.
		answers bool
	}{
		{"hop-by-hop options", hop, [][]byte{padding(udp)}, false},
		{"router alert", hop, [][]byte{option(udp, 5, 0, 0)}, false},
		{"jumbo payload", hop, [][]byte{option(udp, 0xc2, 0, 1, 0, 0)}, true},
		{"unknown hop-by-hop option, to be skipped", hop, [][]byte{option(udp, 0x1e, 0, 0)}, false},
		{"unknown hop-by-hop option, to be dropped", hop, [][]byte{option(udp, 0x5e, 0, 0)}, false},
		{"unknown hop-by-hop option, to be answered", hop, [][]byte{option(udp, 0x9e, 0, 0)}, true},
		{"unknown hop-by-hop option, to be answered unless to a group", hop, [][]byte{option(udp, 0xde, 0, 0)}, true},
		{"CALIPSO label", hop, [][]byte{append([]byte{byte(udp), 1, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0}, 1, 2, 0, 0)}, false},
		{"destination options", dest, [][]byte{padding(udp)}, false},
		{"unknown destination option, to be answered", dest, [][]byte{option(udp, 0x9e, 0, 0)}, false},
		{"home address", dest, [][]byte{append([]byte{byte(udp), 2, 1, 2, 0, 0, 0xc9, 16}, w.victim6.AsSlice()...)}, false},
		{"routing header 0 to the victim", routing, [][]byte{routeBy(0, w.victim6)}, false},
		{"routing header 2 to the victim", routing, [][]byte{routeBy(2, w.victim6)}, false},
		{"routing header 3 to the victim", routing, [][]byte{routeBy(3, w.victim6)}, false},
		{"routing header 4 to the victim", routing, [][]byte{routeBy(4, w.victim6)}, false},
		{"routing header 4 by three", routing, [][]byte{routeBy(4, w.victim6, outside6, w.third6)}, false},
		{"unknown routing header", routing, [][]byte{routeBy(200, w.victim6)}, false},
		{"eight destination options", dest, [][]byte{
			padding(dest), padding(dest), padding(dest), padding(dest),
			padding(dest), padding(dest), padding(dest), padding(udp),
		}, false},
		{"hop-by-hop options that don't come first", dest, [][]byte{padding(hop), padding(udp)}, false},
		{
			"authentication header", layers.IPProtocolAH,
			[][]byte{{byte(udp), 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
			false,
		},
		{"mobility header", layers.IPProtocol(135), [][]byte{{byte(udp), 0, 1, 0, 0, 0, 0, 0}}, false},
		{"HIP", layers.IPProtocol(139), [][]byte{padding(udp)}, false},
		{"shim6", layers.IPProtocol(140), [][]byte{padding(udp)}, false},
		{"an experimental header", layers.IPProtocol(253), [][]byte{padding(udp)}, false},
		{"no next header", noNext, nil, false},
	} {
		for _, from := range []name[netip.Addr]{
			{"itself", w.e6},
			{"the victim", w.victim6},
			{"its link-local address", eui64(w.eMAC)},
		} {
			for _, to := range []name[netip.Addr]{
				{"the gateway", gateway6},
				{"the victim", w.victim6},
				{"the outside", outside6},
			} {
				f.begin("IPv6 extension headers", "")
				parts := append([][]byte{}, x.parts...)
				parts = append(parts, f.payload(f.udp(from.value, to.value)))
				own := f.w.has6 && from.value == w.e6
				one := f.put(
					fmt.Sprintf("%s, from %s to %s", x.text, from.text, to.text),
					own,
					f.serialize(f.toNode(), f.extension(from.value, to.value, x.next, parts...)),
				)
				if own && x.answers {
					one.allowed = "the node says that the option is wrong"
				}
			}
		}
	}
}
