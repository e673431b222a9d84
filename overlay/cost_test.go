package overlay

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// TestGateCost: if the gate is for as many nodes as Kubernetes supports, a tunnel packet takes at most 20 microseconds
// longer than without a gate.
func TestGateCost(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o := zones(t)["n2"]
	nodes := []policy.Node{
		node("n1", "172.20.1.10", "100.96.1.0/24"), node("n2", "172.20.2.10", "100.96.2.0/24"),
		node("n3", "172.20.3.10", "100.96.3.0/24"),
	}
	few := planned("n2", Always, nodes, o)
	if err := applied(o, few); err != nil {
		t.Fatal(err)
	}
	many := few
	for i := range 5000 {
		address := netip.AddrFrom4([4]byte{172, 24 + byte(i>>12), byte(i >> 4), byte(i)})
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 100 + byte(i>>8), byte(i), 0}), 24)
		many.Nodes, many.Tunnelled = append(slices.Clip(many.Nodes), address), append(slices.Clip(many.Tunnelled), network)
		many.Remotes = append(many.Remotes, Remote{Node: address.String(), Address: address, Network: network})
	}
	payload := vxlan(netip.MustParseAddr("172.20.1.10"), netip.MustParseAddr("172.20.2.10"),
		netip.MustParseAddrPort("100.96.1.5:9"), netip.MustParseAddrPort("100.96.2.5:9"))
	var conn *net.UDPConn
	nodetest.In(t, "/run/netns/n1", func() (err error) {
		conn, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(172, 20, 2, 10), Port: conf.OverlayPort})
		return err
	})
	defer func() { _ = conn.Close() }()
	const packets, rounds = 500, 40
	use := func(gate *Gate) {
		nodetest.In(t, "/run/netns/n2", func() error {
			if gate == nil {
				return Gate{}.Remove()
			}
			_, _, err := gate.Apply()
			return err
		})
	}
	round := func() time.Duration {
		began := time.Now()
		for range packets {
			if _, err := conn.Write(payload); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
		return time.Since(began) / packets
	}
	// This rule makes the kernel track connections even without the gate. So the comparison shows only the cost of the
	// gate's rules.
	nodetest.Run(t, "ip", "netns", "exec", "n2", "nft",
		"add table ip x; add chain ip x y { type filter hook input priority 0; }; add rule ip x y ct state established")
	gates := []*Gate{nil, new(Gate), new(Gate)}
	*gates[1], *gates[2] = NewGate(few, nil), NewGate(many, nil)
	// The fastest of many short rounds counts, because other work only makes rounds slower.
	fastest := [3]time.Duration{time.Hour, time.Hour, time.Hour}
	for range 3 {
		for i, g := range gates {
			use(g)
			for range rounds {
				fastest[i] = min(fastest[i], round())
			}
		}
	}
	t.Logf("a tunnel packet takes %v without the gate, %v with that of 3 nodes, %v with that of 5000", fastest[0],
		fastest[1], fastest[2])
	if more := fastest[2] - fastest[0]; more > 20*time.Microsecond {
		t.Errorf("the gate of 5000 nodes takes %v for a packet", more)
	}
}
