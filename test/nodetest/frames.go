package nodetest

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"
)

// everyProtocol is ETH_P_ALL in network byte order (packet(7)).
const everyProtocol = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8

// Frame builds a frame from the layers, and computes their lengths and checksums.
func Frame(t testing.TB, layers ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		layers...); err != nil {
		t.Fatalf("build a frame: %v", err)
	}
	return buf.Bytes()
}

// SendFrames sends the frames unchanged out of the link. A pod can do this if it has CAP_NET_RAW, which runtimes give
// by default.
func SendFrames(t testing.TB, netns, link string, frames ...[]byte) {
	t.Helper()
	fd := packetSocket(t, netns, link)
	defer func() { _ = unix.Close(fd) }()
	for _, f := range frames {
		_, err := unix.Write(fd, f)
		// The queue is full, or a signal has interrupted the call: write again.
		for errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			_, err = unix.Write(fd, f)
		}
		if err != nil {
			t.Fatalf("send a frame of %d bytes out of %s: %v", len(f), link, err)
		}
	}
}

// Sniffer receives the frames that come in or go out on a link.
type Sniffer struct {
	t  testing.TB
	fd int
}

// Sniff begins to receive frames of the link. They wait in the socket's buffer until Frames is called.
func Sniff(t testing.TB, netns, link string) *Sniffer {
	t.Helper()
	s := &Sniffer{t, packetSocket(t, netns, link)}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// Frames returns the frames that went out by the link if outgoing is true, and otherwise the frames that came in. It
// returns when no frame has come for the time silence.
func (s *Sniffer) Frames(outgoing bool, silence time.Duration) [][]byte {
	s.t.Helper()
	var all [][]byte
	buf := make([]byte, 64<<10)
	for {
		wait := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		k, err := unix.Poll(wait, int(silence.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.t.Fatalf("wait for frames: %v", err)
		}
		if k == 0 {
			return all
		}
		size, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && (l.Pkttype == unix.PACKET_OUTGOING) == outgoing {
			all = append(all, append([]byte(nil), buf[:size]...))
		}
	}
}

func packetSocket(t testing.TB, netns, link string) (fd int) {
	t.Helper()
	In(t, netns, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, everyProtocol); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everyProtocol, Ifindex: i.Index})
	})
	return fd
}
