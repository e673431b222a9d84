package probe

import (
	"testing"

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
			case p.silent != nil && r.In != noLink && r.Out != noLink:
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
