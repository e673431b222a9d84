package conntrack

import (
	"net"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestTranslated: if a connection's destination port is translated, Translated is true, and Port is the new port.
func TestTranslated(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "iptables", "-t", "nat", "-A", "OUTPUT", "-d", "127.0.0.1", "-p", "tcp", "--dport", "81", "-j",
		"REDIRECT", "--to-ports", "80")
	l, err := net.Listen("tcp4", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	want := map[int]bool{} // the wanted value of Translated, by the client's port
	for address, translated := range map[string]bool{"127.0.0.1:80": false, "127.0.0.1:81": true} {
		conn := nodetest.Connect(t, nodetest.Self, "tcp", address)
		want[conn.LocalAddr().(*net.TCPAddr).Port] = translated
	}
	seen := 0
	for c, err := range All() {
		if err != nil {
			t.Fatal(err)
		}
		if translated, ok := want[int(parseTuple(c.tuple).sport)]; ok {
			seen++
			if c.Translated != translated || c.Port != 80 {
				t.Errorf("%+v: want translated %v, to port 80", c, translated)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d of %d connections are in the table", seen, len(want))
	}
}
