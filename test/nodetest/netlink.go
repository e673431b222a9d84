package nodetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FailedWatch calls the function watch, which must listen to netlink messages of the protocol. FailedWatch sends watch
// a message that is too short, and returns the error of watch. If watch leaves its socket open, the test fails. The
// test must call Isolated first.
func FailedWatch(t *testing.T, protocol int, watch func() error) error {
	t.Helper()
	before := openFiles(t)
	done := make(chan error, 1)
	go func() { done <- watch() }()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		for _, port := range listeners(t, protocol) {
			sendShort(t, protocol, port)
		}
		select {
		case err := <-done:
			if after := openFiles(t); after > before {
				t.Errorf("%d files are open, and %d were before: a socket is left open", after, before)
			}
			return err
		default:
		}
		if time.Now().After(end) {
			t.Fatal("the watch has not ended after a wrong message")
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// listeners returns the port IDs of the protocol's netlink sockets that have joined a multicast group.
func listeners(t *testing.T, protocol int) (ports []uint32) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var socket, groups string
		var of int
		var port uint32
		n, _ := fmt.Sscan(line, &socket, &of, &port, &groups) // fails for the line with the headings
		if n == 4 && of == protocol && port != 0 && strings.Trim(groups, "0") != "" {
			ports = append(ports, port)
		}
	}
	return ports
}

// sendShort sends the beginning of a message's header.
func sendShort(t *testing.T, protocol int, port uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	header := binary.NativeEndian.AppendUint16(make([]byte, 4), unix.RTM_DELLINK) // bridge.WatchPorts ignores other types
	to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}
	_ = unix.Sendto(fd, header, 0, to) // fails if the socket is closed meanwhile
}
