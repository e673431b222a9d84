package packettest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

type host struct {
	netns string
	addr  netip.Addr
	// Raw sockets by protocol; each sends packets of its protocol, and receives all packets of this protocol.
	raw     map[ruleset.Protocol]int
	servers []io.Closer
	mark    int // mark of the packets that are sent over TCP and UDP sockets (SO_MARK)
}

// The tests use ICMP as the example of a protocol without ports.
const (
	icmp   ruleset.Protocol = "1"
	icmpv6 ruleset.Protocol = "58"
)

func rawProtocols(a netip.Addr) map[ruleset.Protocol]int {
	if a.Is4() {
		return map[ruleset.Protocol]int{ruleset.SCTP: unix.IPPROTO_SCTP, icmp: unix.IPPROTO_ICMP}
	}
	return map[ruleset.Protocol]int{ruleset.SCTP: unix.IPPROTO_SCTP, icmpv6: unix.IPPROTO_ICMPV6}
}

func (n *Node) addHost(path string, addr netip.Addr) {
	n.Helper()
	h := &host{netns: path, addr: addr, raw: map[ruleset.Protocol]int{}}
	n.hosts[addr] = h
	n.Cleanup(h.close)
	nodetest.In(n, path, func() error {
		for _, port := range n.Ports {
			at := netip.AddrPortFrom(addr, port)
			tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			h.servers = append(h.servers, tcp, udp)
			go acceptAll(tcp)
			go echo(udp)
		}
		for proto, number := range rawProtocols(addr) {
			fd, err := unix.Socket(family(addr), unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, number)
			if err != nil {
				return fmt.Errorf("raw socket for %s: %w", proto, err)
			}
			h.raw[proto] = fd
			if err := unix.Bind(fd, sockaddr(addr, 0)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *host) close() {
	for _, s := range h.servers {
		_ = s.Close()
	}
	for _, fd := range h.raw {
		_ = unix.Close(fd)
	}
	h.servers, h.raw = nil, nil
}

// acceptAll accepts connections. When the client closes a connection, acceptAll resets it, so that no socket stays in
// the state TIME_WAIT.
func acceptAll(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			_ = c.SetLinger(0)
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}()
	}
}

func echo(c *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		k, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(buf[:k], from)
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// payload returns the bytes to write to the packet's socket. They contain the packet's number, by which the receiver
// recognises the packet even if its addresses were translated. For a raw socket, the bytes begin behind the IP header.
func payload(p verdict.Packet, number uint32) []byte {
	switch p.Proto {
	case ruleset.SCTP: // the common header and an INIT chunk (RFC 9260)
		b := make([]byte, 32)
		binary.BigEndian.PutUint16(b, 40000+uint16(number%20000))
		binary.BigEndian.PutUint16(b[2:], p.Port)
		b[12], b[15] = 1, 20 // the chunk's type (INIT) and length
		binary.BigEndian.PutUint32(b[16:], number)
		binary.BigEndian.PutUint32(b[20:], 65535) // the window
		b[25], b[27] = 1, 1                       // numbers of outgoing and incoming streams
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	case icmp, icmpv6: // an echo request (RFC 792, RFC 4443); the kernel computes the checksum of ICMPv6
		b := make([]byte, 12)
		b[0] = map[ruleset.Protocol]byte{icmp: 8, icmpv6: 128}[p.Proto]
		binary.BigEndian.PutUint16(b[4:], uint16(number))
		binary.BigEndian.PutUint32(b[8:], number)
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
		return b
	}
	return binary.BigEndian.AppendUint32(nil, number)
}

func numberOf(r receiver, b []byte) uint32 {
	proto := r.proto
	// Raw IPv4 sockets return packets with the IP header. This removes the header.
	if header := int(b[0]&15) * 4; r.family == unix.AF_INET && header < len(b) {
		b = b[header:]
	}
	switch {
	case proto == ruleset.SCTP && len(b) >= 20 && b[12] == 1:
		return binary.BigEndian.Uint32(b[16:])
	case (proto == icmp && len(b) >= 12 && b[0] == 8) || (proto == icmpv6 && len(b) >= 12 && b[0] == 128):
		return binary.BigEndian.Uint32(b[8:])
	}
	return 0
}
