package hostile

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

var (
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	groupMAC4    = net.HardwareAddr{0x01, 0x00, 0x5e, 0, 0, 1}
	groupMAC6    = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	zeroMAC      = net.HardwareAddr{0, 0, 0, 0, 0, 0}
	strangeMAC   = net.HardwareAddr{2, 0xde, 0xad, 0, 0, 1}
)

// linkLocal returns the MAC 01:80:c2:00:00:0X. By IEEE 802.1D, no bridge forwards frames to it.
func linkLocal(x byte) net.HardwareAddr { return net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, x} }

type name[T any] struct {
	text  string
	value T
}

func everything(t testing.TB, w *world, flows []flow) []*frame {
	f := &forge{t: t, w: w}
	f.linkLocalMACs()
	f.forgedSenders()
	f.otherDestinationMACs()
	f.tags()
	f.etherTypes()
	f.addressResolution()
	f.neighbourDiscovery()
	f.errors(flows)
	f.fragmentClasses()
	f.options4()
	f.extensions6()
	f.tunnels()
	f.destinations()
	f.connections(flows)
	f.malformed()
	return f.frames
}

// linkLocalMACs forges frames to link-local MACs. If group_fwd_mask is 0, frames to 01:80:c2:00:00:02 and higher don't
// cross the bridge: the kernel hands them to the IP stack as packets of the bridge's port, not of the bridge
// (br_handle_frame).
func (f *forge) linkLocalMACs() {
	w := f.w
	eLocal, portLocal := eui64(w.eMAC), eui64(w.portMAC)
	_, peer := w.underlay()
	for x := range byte(16) {
		to := linkLocal(x)
		f.begin("to "+to.String(), "")
		way := eth(to, w.eMAC)
		put := f.forged
		if x == 0 {
			// Without STP, the bridge treats 01:80:c2:00:00:00 as an ordinary multicast MAC. So if the guard did not drop such
			// frames, E's own packets would reach the rules of the policies.
			put = func(name string, stacks ...stack) { f.own(name, stacks...) }
		}
		put("UDP over IPv4 to the gateway, own sender", way, f.udp(w.e4, gateway4))
		f.forged("UDP over IPv4 to the gateway, sender outside", way, f.udp(outside4, gateway4))
		f.forged("UDP over IPv4 to the node's uplink, sender the victim", way, f.udp(w.victim4, uplink4))
		f.forged("UDP over IPv4 to the victim, sender outside", way, f.udp(outside4, w.victim4))
		f.forged("echo request over IPv4, sender the victim", way, f.echo(w.victim4, gateway4))
		put("SYN over IPv4, own sender", way, f.syn(w.e4, gateway4))
		f.put("fragments over IPv4, sender the victim", false, f.fragments(way, w.victim4, gateway4)...)
		f.put("a first fragment over IPv4", x == 0 && w.has4, f.fragments(way, w.e4, gateway4)[0]).waits = true
		put("UDP over IPv6 to the gateway, own sender", way, f.udp(w.e6, gateway6))
		f.forged("UDP over IPv6 to the node's uplink, sender outside", way, f.udp(outside6, uplink6))
		f.forged("UDP over IPv6 to the victim, sender outside", way, f.udp(outside6, w.victim6))
		f.forged("UDP between link-local addresses", way, f.udp(eLocal, portLocal))
		f.forged("echo request to all nodes on the link", way, f.echo(eLocal, netip.MustParseAddr("ff02::1")))
		f.forged("echo request over IPv6, sender the victim", way, f.echo(w.victim6, gateway6))
		f.put("fragments over IPv6, sender the victim", false, f.fragments(way, w.victim6, gateway6)...)
		f.put("a first fragment over IPv6", x == 0 && w.has6, f.fragments(way, w.e6, gateway6)[0]).waits = true
		put(
			"an unknown hop-by-hop option",
			way,
			f.extension(w.e6, gateway6, layers.IPProtocolIPv6HopByHop, hopByHop(f.marker(), 0x80)),
		)
		put("ARP request, own sender", way, f.arp(1, w.eMAC, w.e4, gateway4))
		f.forged("ARP reply for a free address", way, f.arp(2, w.eMAC, free4, gateway4))
		f.forged("ARP reply for the outside host", way, f.arp(2, w.eMAC, outside4, uplink4))
		f.forged("router advertisement", way, f.routerAdvertisement(eLocal))
		f.forged("neighbour solicitation", way, f.solicitation(eLocal, portLocal))
		f.forged("neighbour advertisement", way, f.advertisement(eLocal, portLocal, free6))
		f.forged(
			"tunnel packet of another node's",
			way,
			f.vxlan(peer, f.tunnelEnd(), f.udp(f.peerPod(), f.podOf(w.victim4, w.victim6))),
		)
		for _, kind := range []uint16{0x0027, 0x8808, 0x8809, 0x888e, 0x88cc, 0x88b5} {
			f.forged(fmt.Sprintf("type %#04x", kind), raw(to, w.eMAC, kind, f.marker()))
		}
	}
}

func (f *forge) tunnelEnd() netip.Addr {
	local, _ := f.w.underlay()
	return local
}

func (f *forge) peerPod() netip.Addr { return f.podOf(peerPod4, peerPod6) }

func (f *forge) podOf(four, six netip.Addr) netip.Addr {
	if f.w.has4 {
		return four
	}
	return six
}

// raw returns a frame of any type. A type below 1536 is a length (IEEE 802.3), after which LLC follows.
func raw(dst, src net.HardwareAddr, kind uint16, parts ...[]byte) stack {
	h := append(append([]byte{}, dst...), src...)
	s := stack{gopacket.Payload(append(h, byte(kind>>8), byte(kind)))}
	for _, p := range parts {
		s = append(s, gopacket.Payload(p))
	}
	return s
}

// eui64 returns the link-local address that the kernel derives from this MAC.
func eui64(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func (f *forge) forgedSenders() {
	w := f.w
	macs := []name[net.HardwareAddr]{
		{"its own MAC", w.eMAC},
		{"the victim's MAC", w.victimMAC},
		{"the gateway's MAC", w.bridgeMAC},
		{"its port's MAC", w.portMAC},
		{"the uplink's MAC", w.uplinkMAC},
		{"an unused MAC", strangeMAC},
		{"the broadcast MAC", broadcastMAC},
		{"a multicast MAC", groupMAC4},
		{"the zero MAC", zeroMAC},
	}
	senders := map[string][]name[netip.Addr]{
		"IPv4": {
			{"its own address", w.e4},
			{"the victim's address", w.victim4},
			{"the gateway's address", gateway4},
			{"the uplink's address", uplink4},
			{"another node's address", peer4},
			{"another node's pod", peerPod4},
			{"an address outside", outside4},
			{"a free address", free4},
			{"the network's address", network4},
			{"the network's broadcast", broadcast4},
			{"loopback", netip.MustParseAddr("127.0.0.1")},
			{"no address", netip.IPv4Unspecified()},
			{"broadcast", netip.MustParseAddr("255.255.255.255")},
			{"a group's address", netip.MustParseAddr("224.0.0.1")},
			{"a reserved address", netip.MustParseAddr("240.0.0.1")},
			{"a link-local address", netip.MustParseAddr("169.254.169.254")},
		},
		"IPv6": {
			{"its own address", w.e6},
			{"the victim's address", w.victim6},
			{"the gateway's address", gateway6},
			{"the uplink's address", uplink6},
			{"another node's address", peer6},
			{"another node's pod", peerPod6},
			{"an address outside", outside6},
			{"a free address", free6},
			{"its link-local address", eui64(w.eMAC)},
			{"its port's link-local address", eui64(w.portMAC)},
			{"loopback", netip.IPv6Loopback()},
			{"no address", netip.IPv6Unspecified()},
			{"a group's address", netip.MustParseAddr("ff02::1")},
			{"its IPv4 address, mapped", netip.AddrFrom16(w.e4.As16())},
			{"a site-local address", netip.MustParseAddr("fec0::1")},
		},
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		victim, gateway := w.victim4, gateway4
		if family == "IPv6" {
			victim, gateway = w.victim6, gateway6
		}
		for _, mac := range macs {
			f.begin("forged sender over "+family+": "+mac.text, "")
			way := eth(w.bridgeMAC, mac.value)
			for i, from := range senders[family] {
				if i == 0 && mac.text == "its own MAC" {
					continue // MAC and address are E's own, so nothing is forged
				}
				f.forged("UDP to the victim from "+from.text, way, f.udp(from.value, victim))
				f.forged("UDP to the gateway from "+from.text, way, f.udp(from.value, gateway))
				f.forged("echo request to the gateway from "+from.text, way, f.echo(from.value, gateway))
				f.forged("SYN to the victim from "+from.text, way, f.syn(from.value, victim))
			}
		}
	}
}

func (f *forge) otherDestinationMACs() {
	w := f.w
	f.begin("own sender, another destination MAC", "")
	for _, to := range []name[net.HardwareAddr]{
		{"the victim's", w.victimMAC},
		{"its port's", w.portMAC},
		{"the uplink's", w.uplinkMAC},
		{"the tunnel's", w.tunnelMAC},
		{"its own", w.eMAC},
		{"broadcast", broadcastMAC},
		{"IPv4's all systems", groupMAC4},
		{"IPv6's all nodes", groupMAC6},
		{"a strange one", strangeMAC},
		{"none", zeroMAC},
	} {
		for _, a := range [][3]netip.Addr{{w.e4, w.victim4, gateway4}, {w.e6, w.victim6, gateway6}} {
			f.own("UDP to the victim, MAC "+to.text, eth(to.value, w.eMAC), f.udp(a[0], a[1]))
			f.own("UDP to the gateway, MAC "+to.text, eth(to.value, w.eMAC), f.udp(a[0], a[2]))
		}
		f.own("a group's address, MAC "+to.text, eth(to.value, w.eMAC), f.udp(w.e4, netip.MustParseAddr("224.0.0.251")))
	}
}

// tags adds frames with tags of IEEE 802.1Q and 802.1ad. The kernel ignores a single tag with VLAN ID 0. So if the
// hostile pod (E) sends a packet with such a tag from its own MAC and address, policies decide on the packet.
func (f *forge) tags() {
	w := f.w
	tag := func(kind layers.EthernetType, ids ...uint16) (s stack) {
		s = stack{&layers.Ethernet{DstMAC: w.bridgeMAC, SrcMAC: w.eMAC, EthernetType: kind}}
		for i, id := range ids {
			q := &layers.Dot1Q{VLANIdentifier: id}
			if i+1 < len(ids) {
				q.Type = layers.EthernetTypeDot1Q
			}
			s = append(s, q)
		}
		return s
	}
	const q, ad = layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ
	for _, v := range []struct {
		text   string
		way    stack
		passes bool
	}{
		{"VLAN 0", tag(q, 0), true},
		{"VLAN 1", tag(q, 1), false},
		{"VLAN 5", tag(q, 5), false},
		{"VLAN 4095", tag(q, 4095), false},
		{"802.1ad 0", tag(ad, 0), true},
		{"802.1ad 5", tag(ad, 5), false},
		{"two tags", tag(q, 5, 6), false},
		{"two tags 0", tag(q, 0, 0), false},
		{"802.1ad and 802.1Q", tag(ad, 5, 6), false},
	} {
		f.begin("VLAN tags", "")
		put := f.forged
		if v.passes {
			put = func(name string, stacks ...stack) { f.own(name, stacks...) }
		}
		put(v.text+", UDP over IPv4", v.way, f.udp(w.e4, w.victim4))
		put(v.text+", UDP over IPv6", v.way, f.udp(w.e6, w.victim6))
		f.forged(v.text+", UDP over IPv4 of the victim's", v.way, f.udp(w.victim4, gateway4))
		f.forged(v.text+", UDP over IPv6 of the victim's", v.way, f.udp(w.victim6, gateway6))
		f.forged(v.text+", ARP for the victim", v.way, f.arp(1, w.eMAC, w.victim4, gateway4))
		f.forged(v.text+", router advertisement", v.way, f.routerAdvertisement(eui64(w.eMAC)))
	}
}

func (f *forge) etherTypes() {
	w := f.w
	f.begin("other EtherTypes", "")
	kinds := []uint16{
		0x0060, 0x0800 + 1, 0x0842, 0x22f0, 0x22f3, 0x4305, 0x6558, 0x6559, 0x8035, 0x809b, 0x80f3, 0x8137, 0x8847, 0x8848,
		0x8863, 0x8864,
		0x886d, 0x888e, 0x8892, 0x889a, 0x88a2, 0x88a4, 0x88b5, 0x88b6, 0x88be, 0x88c7, 0x88ca, 0x88cc, 0x88e5, 0x88e7,
		0x88f5, 0x88f7,
		0x88f8, 0x8902, 0x8906, 0x8914, 0x890d, 0x891d, 0x892f, 0x894f, 0x9000, 0x9100, 0x9200, 0xdada, 0xed3e, 0xfbfb,
		0xffff,
	}
	for kind := 0x0600; kind < 0x10000; kind += 101 {
		if kind != unix.ETH_P_IP && kind != unix.ETH_P_IPV6 && kind != unix.ETH_P_ARP {
			kinds = append(kinds, uint16(kind))
		}
	}
	for _, kind := range kinds {
		inside := f.serialize(f.udp(w.e4, w.victim4))
		f.forged(fmt.Sprintf("%#04x", kind), raw(w.bridgeMAC, w.eMAC, kind, inside))
	}
	f.begin("IEEE 802.3 with LLC or SNAP", "")
	for _, to := range []net.HardwareAddr{w.bridgeMAC, broadcastMAC} {
		for _, llc := range []name[[]byte]{
			{"BPDU", []byte{0x42, 0x42, 3}},
			{"SNAP with IPv4", []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}},
			{"SNAP with ARP", []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 6}},
			{"SNAP with IPv6", []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd}},
			{"IPv4", []byte{6, 6, 3}},
			{"IPX", []byte{0xe0, 0xe0, 3}},
			{"raw IPX", []byte{0xff, 0xff}},
			{"XID", []byte{0, 1, 0xaf, 0x81, 1, 0}},
			{"TEST", []byte{0, 1, 0xf3}},
		} {
			inside := f.serialize(f.udp(w.e4, w.victim4))
			f.forged(llc.text+" to "+to.String(), raw(to, w.eMAC, uint16(len(llc.value)+len(inside)), llc.value, inside))
		}
	}
}

func (f *forge) addressResolution() {
	w := f.w
	f.begin("ARP, own sender", "the node tells its MAC, which the pod knows")
	f.own("request for the gateway", eth(broadcastMAC, w.eMAC), f.arp(1, w.eMAC, w.e4, gateway4)).asks = gateway4
	f.own("request for the gateway, to its MAC", f.toNode(), f.arp(1, w.eMAC, w.e4, gateway4)).asks = gateway4
	f.own("request for the uplink's address", eth(broadcastMAC, w.eMAC), f.arp(1, w.eMAC, w.e4, uplink4)).asks = uplink4
	f.begin("ARP, own sender, for other addresses", "")
	f.own("request for the victim", eth(broadcastMAC, w.eMAC), f.arp(1, w.eMAC, w.e4, w.victim4)).asks = w.victim4
	f.own("request for itself", eth(broadcastMAC, w.eMAC), f.arp(1, w.eMAC, w.e4, w.e4))
	f.own("request for the outside", eth(broadcastMAC, w.eMAC), f.arp(1, w.eMAC, w.e4, outside4)).asks = outside4
	f.own("reply", f.toNode(), f.arp(2, w.eMAC, w.e4, gateway4))
	f.begin("forged ARP", "")
	for _, to := range []net.HardwareAddr{broadcastMAC, w.bridgeMAC, w.victimMAC} {
		for _, op := range []uint16{1, 2, 3, 4, 8, 9} {
			kind := fmt.Sprintf("operation %d to %s: ", op, to)
			f.forged(kind+"the victim's address", eth(to, w.eMAC), f.arp(op, w.eMAC, w.victim4, gateway4))
			f.forged(kind+"the gateway's address", eth(to, w.eMAC), f.arp(op, w.eMAC, gateway4, w.victim4))
			f.forged(kind+"an address outside", eth(to, w.eMAC), f.arp(op, w.eMAC, outside4, uplink4))
			f.forged(kind+"a free address", eth(to, w.eMAC), f.arp(op, w.eMAC, free4, gateway4))
			f.forged(kind+"no address", eth(to, w.eMAC), f.arp(op, w.eMAC, netip.IPv4Unspecified(), gateway4))
			f.forged(kind+"another's MAC inside", eth(to, w.eMAC), f.arp(op, w.victimMAC, w.e4, gateway4))
			f.forged(kind+"another's MAC outside", eth(to, w.victimMAC), f.arp(op, w.eMAC, w.e4, gateway4))
		}
	}
}

type flow struct {
	text     string
	protocol layers.IPProtocol
	from, to netip.AddrPort
}

// converse opens connections of the victim pod. These connections stay open, so that the hostile pod (E) can forge
// packets that seem to belong to them.
func (w *world) converse(t testing.TB) (flows []flow) {
	t.Helper()
	for i, pair := range []struct {
		text     string
		has      bool
		from, to netip.Addr
	}{
		{"IPv4 with the outside", w.has4, w.victim4, outside4},
		{"IPv4 with a pod", w.has4, w.victim4, w.third4},
		{"IPv6 with the outside", w.has6, w.victim6, outside6},
		{"IPv6 with a pod", w.has6, w.victim6, w.third6},
	} {
		if !pair.has {
			continue
		}
		from := netip.AddrPortFrom(pair.from, uint16(15000+i))
		toUDP, toTCP := netip.AddrPortFrom(pair.to, udpPort), netip.AddrPortFrom(pair.to, tcpPort)
		nodetest.In(t, w.victim, func() error {
			udp, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(toUDP))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = udp.Close() })
			if err := greet(udp); err != nil {
				return fmt.Errorf("%s: %w", pair.text, err)
			}
			dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: 10 * time.Second}
			tcp, err := dialer.Dial("tcp", toTCP.String())
			if err != nil {
				return fmt.Errorf("%s: %w", pair.text, err)
			}
			t.Cleanup(func() { _ = tcp.Close() })
			return nil
		})
		flows = append(
			flows,
			flow{"UDP over " + pair.text, layers.IPProtocolUDP, from, toUDP},
			flow{"TCP over " + pair.text, layers.IPProtocolTCP, from, toTCP},
		)
	}
	return flows
}

// greet sends until an answer comes, at most 50 times, because the first packets on a new link may be lost.
func greet(conn *net.UDPConn) (err error) {
	for range 50 {
		if _, err = conn.Write([]byte("hello")); err != nil {
			return err
		}
		if err = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		if _, err = conn.Read(make([]byte, 100)); err == nil {
			return nil
		}
	}
	return err
}
