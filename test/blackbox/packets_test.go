package blackbox

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

func macOf(t *testing.T, netns, link string) (mac net.HardwareAddr) {
	t.Helper()
	nodetest.In(t, netns, func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	return mac
}

func ethernet(dst, src net.HardwareAddr, ip string) *layers.Ethernet {
	kind := layers.EthernetTypeIPv4
	if strings.Contains(ip, ":") {
		kind = layers.EthernetTypeIPv6
	}
	return &layers.Ethernet{DstMAC: dst, SrcMAC: src, EthernetType: kind}
}

type udp struct{ src, dst netip.AddrPort }

func flow(src, dst string) udp {
	return udp{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)}
}

func (u udp) packet(payload string) []gopacket.SerializableLayer {
	udp := &layers.UDP{SrcPort: layers.UDPPort(u.src.Port()), DstPort: layers.UDPPort(u.dst.Port())}
	return []gopacket.SerializableLayer{
		ip(u.src.Addr(), u.dst.Addr(), layers.IPProtocolUDP, udp), udp,
		gopacket.Payload(payload),
	}
}

func datagram(src, dst string, port int, payload []byte) []gopacket.SerializableLayer {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	return udp{netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(to, uint16(port))}.packet(string(payload))
}

func udpFrame(t *testing.T, srcMAC, dstMAC net.HardwareAddr, from, to string, port int, payload []byte) []byte {
	t.Helper()
	return nodetest.Frame(t, layersOf(ethernet(dstMAC, srcMAC, to), datagram(from, to, port, payload)...)...)
}

func ip(src, dst netip.Addr, protocol layers.IPProtocol, inside any) gopacket.SerializableLayer {
	return header(src.String(), dst.String(), protocol, inside)
}

// header returns the IP header of a packet. inside is the next layer, or nil. If the checksum of inside covers the IP
// addresses, inside gets these addresses.
func header(src, dst string, protocol layers.IPProtocol, inside any) gopacket.SerializableLayer {
	var ip gopacket.SerializableLayer
	if strings.Contains(dst, ":") {
		ip = &layers.IPv6{Version: 6, NextHeader: protocol, HopLimit: 255, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	} else {
		ip = &layers.IPv4{
			Version:  4,
			TTL:      64,
			Protocol: protocol,
			SrcIP:    net.ParseIP(src).To4(),
			DstIP:    net.ParseIP(dst).To4(),
		}
	}
	if l, ok := inside.(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		_ = l.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	}
	return ip
}

func layersOf(first gopacket.SerializableLayer, rest ...gopacket.SerializableLayer) []gopacket.SerializableLayer {
	return append([]gopacket.SerializableLayer{first}, rest...)
}
