package blackbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// firstFragment returns the first fragment of a packet. Its payload has size bytes, which are all 0. In IPv6, an odd id
// adds destination options before the fragment header.
func firstFragment(t *testing.T, dstMAC, srcMAC net.HardwareAddr, src, dst string, id, size int) []byte {
	t.Helper()
	payload := gopacket.Payload(make([]byte, size))
	if !strings.Contains(dst, ":") {
		ip := header(src, dst, layers.IPProtocolUDP, nil).(*layers.IPv4)
		ip.Id, ip.Flags = uint16(id), layers.IPv4MoreFragments
		return nodetest.Frame(t, ethernet(dstMAC, srcMAC, dst), ip, payload)
	}
	fragment := gopacket.Payload([]byte{
		byte(layers.IPProtocolUDP), 0, 0, 1, byte(id >> 24), byte(id >> 16),
		byte(id >> 8), byte(id),
	})
	if id%2 == 0 {
		return nodetest.Frame(t, ethernet(dstMAC, srcMAC, dst), header(src, dst, layers.IPProtocolIPv6Fragment, nil),
			fragment, payload)
	}
	// The options consist of padding (RFC 8200).
	options := gopacket.Payload([]byte{byte(layers.IPProtocolIPv6Fragment), 0, 1, 4, 0, 0, 0, 0})
	return nodetest.Frame(t, ethernet(dstMAC, srcMAC, dst), header(src, dst, layers.IPProtocolIPv6Destination, nil),
		options, fragment, payload)
}

// arrive sends count datagrams of 8 KB to the other pod, at equal intervals within the time spread. It returns the
// number of datagrams that arrive.
func arrive(t *testing.T, from, to *nodetest.Pod, address string, count int, spread time.Duration) int {
	t.Helper()
	box := listen(t, to.Netns, "udp", net.JoinHostPort(address, "9999"))
	defer func() { _ = box.conn.Close() }()
	raw, err := box.conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		})
	}
	if err != nil {
		t.Fatalf("make room for what arrives: %v", err)
	}
	conn, err := nodetest.Dial(t, from.Netns, "udp", net.JoinHostPort(address, "9999"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	for i := range count {
		time.Sleep(time.Until(began.Add(spread * time.Duration(i) / time.Duration(count))))
		if _, err := conn.Write(append(fmt.Appendf(nil, "%08d", i), make([]byte, 8192-8)...)); err != nil {
			t.Fatal(err)
		}
	}
	came := 0
	for buf := make([]byte, 64<<10); came < count; came++ {
		// On a busy machine, a datagram may be late.
		if err := box.conn.SetReadDeadline(time.Now().Add(10 * silence)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := box.conn.ReadFrom(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return came
}

// TestFragmentsOfOnePod: while one pod sends a flood of first fragments, all fragmented datagrams of other pods arrive.
func TestFragmentsOfOnePod(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, a, b := hostileNode(t, dualStack)
	mac, router := macOf(t, e.Netns, "eth0"), macOf(t, nodetest.Self, "weir0")
	var frames [][]byte
	for id := range 3000 {
		size := 8 + id%2*1400
		frames = append(frames, firstFragment(t, router, mac, e.IP, b.IP, id, size),
			firstFragment(t, router, mac, e.IP6, b.IP6, id, size))
	}
	var stop atomic.Bool
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop.Store(true)
	sent := make(chan struct{})
	flood.Go(func() {
		nodetest.SendFrames(t, e.Netns, "eth0", frames...)
		close(sent)
		for !stop.Load() {
			nodetest.SendFrames(t, e.Netns, "eth0", frames...)
		}
	})
	<-sent
	for _, address := range []string{b.IP, b.IP6} {
		if got := arrive(t, a, b, address, 100, time.Second); got != 100 {
			t.Errorf("of 100 datagrams to %s %d arrived", address, got)
		}
	}
}

// TestControlOwnFragments: without a flood from another pod, all fragmented datagrams of a pod arrive.
func TestControlOwnFragments(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, _, a, b := hostileNode(t, dualStack)
	for _, address := range []string{b.IP, b.IP6} {
		for _, spread := range []time.Duration{3 * time.Second, 0} {
			count := max(100, 100*int(spread/time.Second))
			if got := arrive(t, a, b, address, count, spread); got != count {
				t.Errorf("of %d datagrams to %s, sent in %v, %d arrived", count, address, spread, got)
			}
		}
	}
}
