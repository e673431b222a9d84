package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/test/nodetest"
)

// counting is a backend. Its method Generation returns the number that the test has put into the field generation.
type counting struct {
	memory
	generation uint32
}

func (c *counting) Generation() (uint32, error) { return c.generation, nil }

// TestGuardIsReadAfterChanges: a resync reads the guard if the generation of nf_tables or a record has changed.
func TestGuardIsReadAfterChanges(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, _, _ := remembering(t)
	backend := &counting{generation: 1}
	a.backend = backend
	const damage = "delete table arp weir-ports"
	intact := func(when string, want bool) {
		t.Helper()
		if err := a.keepGuard(netfilter.All); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(nodetest.Run(t, "nft", "list", "tables"), "arp weir-ports"); got != want {
			t.Errorf("%s: the guard is intact: %v, want %v", when, got, want)
		}
	}
	nft := func(command string) { nodetest.Run(t, "nft", strings.Fields(command)...) }
	intact("the first round", true)
	nft(damage)
	intact("the same generation", false)
	backend.generation++
	intact("another generation", true)
	nft(damage)
	e := endpoint.Endpoint{
		ContainerID: "a", IfName: "eth0", HostIf: "weirp0", MAC: "0e:58:0a:58:00:02", Enforcement: conf.Strict,
		Addresses: []endpoint.Address{{
			Addr: netip.MustParseAddr("10.88.0.2"), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
		}},
	}
	if err := e.Save(); err != nil {
		t.Fatal(err)
	}
	intact("the same generation, and a new record", true)
	nft(damage)
	backend.generation = 0
	intact("an unknown generation", true)
	nft(damage)
	intact("an unknown generation again", true)
}
