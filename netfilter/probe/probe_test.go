package probe

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestOnlyOwnPacketsAreDropped: a rule that can drop or translate a packet is only for packets from the loopback
// address to itself, at a port of the trial's sockets. If the trial has no sockets, no packet matches the rule.
func TestOnlyOwnPacketsAreDropped(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	check := func(p *Trial) {
		own := loopback[p.Family]
		for _, r := range append(p.Rules(), p.Masquerades()...) {
			switch {
			case r.Action == ruleset.Return, r.Action == ruleset.GoTo && r.To == ClassChain: // the class accepts all packets
			case r.Src.Addr() != own || r.Dst.Addr() != own || !r.Src.IsSingleIP() || !r.Dst.IsSingleIP():
				t.Errorf("%s: the rule %v matches packets of other programs", p.Family, r)
			case p.silent != nil && r.In != NoLink && r.Out != NoLink:
				t.Errorf("%s: without sockets, the rule %v matches packets of other programs", p.Family, r)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, f := range conf.Families {
		check(New(f))
		var before unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		p := New(f)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
		if p.silent == nil {
			t.Error("the trial has sockets although the process may open none")
		}
		check(p)
	}
}

// TestPacketThatWaits: arrives finds a packet that is already in the socket, even if the deadline has passed.
func TestPacketThatWaits(t *testing.T) {
	for _, f := range conf.Families {
		trial := New(f)
		if trial.silent != nil {
			t.Fatal(trial.silent)
		}
		at := trial.receivers[0]
		if from := arrives(at, time.Unix(1, 0)); from.IsValid() {
			t.Errorf("%s: a packet from %s before any was sent", f, from)
		}
		if _, err := trial.sender.WriteToUDPAddrPort([]byte("x"), addrOf(at)); err != nil {
			t.Fatal(err)
		}
		waitsFor(t, at)
		if from, sender := arrives(at, time.Unix(1, 0)), addrOf(trial.sender); from != sender {
			t.Errorf("%s: a packet from %v instead of %s", f, from, sender)
		}
		if err := trial.Close(); err != nil {
			t.Error(err)
		}
	}
}

// waitsFor waits until a packet is in the socket.
func waitsFor(t *testing.T, at *net.UDPConn) {
	t.Helper()
	raw, err := at.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	errControl := raw.Control(func(fd uintptr) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
	})
	if n != 1 || err != nil || errControl != nil {
		t.Fatalf("no packet has come: %v, %v", err, errControl)
	}
}
