package nodetest

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// StrangersPass checks that weir doesn't drop other programs' UDP packets to the port. It sends packets over the
// loopback link, but none from 127.0.0.1 to 127.0.0.1 or from ::1 to ::1. It also sends packets from the host outside
// (Outside). Each packet must arrive.
func StrangersPass(t testing.TB, outside string, ipv6 bool, port uint16) {
	t.Helper()
	all := [][3]string{
		{Self, "127.0.0.1", "127.0.0.2"},
		{Self, "127.0.0.2", "127.0.0.2"},
		{Self, "192.0.2.2", "192.0.2.2"},
		{outside, "192.0.2.1", "192.0.2.2"},
	}
	if ipv6 {
		all = [][3]string{{Self, "2001:db8::2", "2001:db8::2"}, {outside, "2001:db8::1", "2001:db8::2"}}
	}
	for _, way := range all {
		to := &net.UDPAddr{IP: net.ParseIP(way[2]), Port: int(port)}
		err := stranger(t, way[0], net.ParseIP(way[1]), to)
		for end := time.Now().Add(patience); err != nil && time.Now().Before(end); { // a new link may drop packets
			err = stranger(t, way[0], net.ParseIP(way[1]), to)
		}
		if err != nil {
			t.Errorf("a packet from %s to port %d of %s doesn't arrive: %v", way[1], port, way[2], err)
		}
	}
}

func stranger(t testing.TB, netns string, from net.IP, to *net.UDPAddr) error {
	t.Helper()
	listener, err := net.ListenUDP("udp", to)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	In(t, netns, func() error {
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: from}, to)
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("x"))
		_ = conn.Close()
		return err
	})
	if err := listener.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if n, err := listener.Read(make([]byte, 8)); err != nil || n != 1 {
		return fmt.Errorf("%d bytes: %w", n, err)
	}
	return nil
}
