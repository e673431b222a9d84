package policy_test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// decides checks that the ruleset allows the packets in the text pass, and drops those in the text denied. Packets are
// separated by spaces.
func decides(t *testing.T, r ruleset.Ruleset, s policy.State, pass, denied string) {
	t.Helper()
	simulator, err := ruleset.NewSimulator(r)
	if err != nil {
		t.Fatal(err)
	}
	for want, list := range map[bool]string{true: pass, false: denied} {
		for _, p := range strings.Fields(list) {
			if got := simulator.Allows(packet(t, s, p)); got != want {
				t.Errorf("%s: allowed: %v, want %v", p, got, want)
			}
		}
	}
}

// evaluates checks that the evaluator allows the packets in the text pass, and denies those in the text denied.
func evaluates(t *testing.T, s policy.State, pass, denied string) {
	t.Helper()
	evaluator := verdict.New(s)
	for want, list := range map[bool]string{true: pass, false: denied} {
		for _, text := range strings.Fields(list) {
			p := packet(t, s, text)
			v := evaluator.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
			if v.AllowedHere() != want {
				t.Errorf("%s: want allowed: %v, but the evaluator says:\n%s", text, want, v)
			}
		}
	}
}

// packet parses "FROM>TO:PROTO:PORT". FROM and TO are addresses, names of pods, or "node". NAME/6 is the IPv6 address
// of a pod.
func packet(t testing.TB, state policy.State, s string) ruleset.Packet {
	t.Helper()
	from, rest, _ := strings.Cut(s, ">")
	var parts [3]string // TO, PROTO and PORT
	for i := 2; i > 0; i-- {
		colon := strings.LastIndex(rest, ":")
		if colon < 0 {
			t.Fatalf("packet %q", s)
		}
		rest, parts[i] = rest[:colon], rest[colon+1:]
	}
	parts[0] = rest
	port, err := strconv.ParseUint(parts[2], 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	p := ruleset.Packet{In: "eth0", Out: "eth0", Proto: ruleset.Protocol(parts[1]), Port: uint16(port)}
	where := func(name string, addr *netip.Addr, inter *string) {
		name, six := strings.CutSuffix(name, "/6")
		fits := func(a netip.Addr) bool { return !six || a.Is6() }
		if name == "node" {
			*addr, *inter = netip.MustParseAddr(map[bool]string{false: "192.0.2.2", true: "2001:db8::2"}[six]), ""
			return
		}
		if a, err := netip.ParseAddr(name); err == nil {
			*addr = a
			return
		}
		for _, e := range state.Endpoints {
			for _, a := range e.Addresses {
				if e.Pod.Name == name && fits(a.Addr) {
					*addr, *inter = a.Addr, conf.Bridge
					return
				}
			}
		}
		for _, pod := range state.Pods {
			for _, a := range pod.Addresses {
				if pod.Name == name && fits(a) {
					*addr = a
					return
				}
			}
		}
		t.Fatalf("packet %q: who is %s?", s, name)
	}
	where(from, &p.Src, &p.In)
	where(parts[0], &p.Dst, &p.Out)
	return p
}
