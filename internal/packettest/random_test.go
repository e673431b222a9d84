package packettest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	clusters = flag.Int("clusters", 20, "between the pods of how many random clusters packets are sent")
	seed     = flag.Uint64("seed", 0, "only of the cluster of that seed")
	nodes    = flag.Int("nodes", 1, "on how many nodes random clusters run; as many at once as -parallel allows")
)

// TestRandomClusters sends packets between the pods of random clusters. The packets that the evaluator allows must
// arrive, and no others. The packets that audited policies would drop must be logged, and no others.
//
// To replay one cluster with all backends: go test ./internal/packettest -run TestRandomClusters -seed N
func TestRandomClusters(t *testing.T) {
	onNodes(t, randomClusters)
}

func randomClusters(t *testing.T, n *Node, p part) {
	t.Helper()
	sent, tried := 0, 0
	for i, name := range Names {
		n.Use(name)
		first, last := i**clusters/len(Names), (i+1)**clusters/len(Names)
		all := p.of(uint64(first+1), uint64(last-first))
		if *seed != 0 {
			n.Enforce(randomState(*seed - 1))
			all = span{*seed, *seed + 1}
		}
		for s := all.first; s < all.end && !t.Failed(); s++ {
			sent += compare(t, n, s)
		}
		tried += all.len()
	}
	t.Logf("%d packets", sent)
	if !t.Failed() {
		fmt.Printf("random-packets: %d clusters, 0 differences\n", tried)
		fmt.Printf("random-audit: %d would-drops between the pods of %d clusters, 0 differences\n", wouldDrops, tried)
	}
	if tried >= 20 && wouldDrops < tried {
		t.Errorf("audited policies would have dropped only %d packets", wouldDrops)
	}
}

// onNodes calls the function try on each of several nodes. Each node gets a part of the work.
func onNodes(t *testing.T, try func(t *testing.T, n *Node, p part)) {
	t.Helper()
	for i := range uint64(*nodes) {
		t.Run(fmt.Sprint("node ", i), func(t *testing.T) {
			if nodetest.Isolated(t) {
				try(t, randomNode(t), part{i, uint64(*nodes)})
			}
		})
	}
}

// part is the part of the work that one node does: one of several parts, which are numbered from 0.
type part struct{ number, parts uint64 }

// of returns the part's seeds, which are consecutive. All parts together have count seeds, beginning with first.
func (p part) of(first, count uint64) span {
	return span{first + count*p.number/p.parts, first + count*(p.number+1)/p.parts}
}

// span has the seeds from first to end-1.
type span struct{ first, end uint64 }

func (s span) len() int { return int(s.end - s.first) }

var wouldDrops int

func randomNode(t *testing.T) *Node {
	t.Helper()
	var networks []endpoint.Address
	here, elsewhere := map[conf.Family]netip.Addr{}, map[conf.Family]netip.Addr{}
	for f, a := range policytest.Of {
		f := conf.Family(f)
		gateway := a.Subnet.Addr().Next()
		networks = append(networks, endpoint.Address{Subnet: a.Subnet, Gateway: gateway})
		here[f], elsewhere[f] = gateway.Next(), a.Elsewhere.Addr().Next().Next()
	}
	n := NewNode(t, networks, 1, 79, 80, 81, 82, 83, 84, 85, 86, 442, 443, 444, 445, 446, 65535)
	for i := range 8 {
		name, hostIf := fmt.Sprint("p", i), fmt.Sprint("veth", i)
		switch policytest.KindOf(i) {
		case policytest.OnWeir:
			n.AddPod(name, here[conf.IPv4], here[conf.IPv6])
		case policytest.OnLink:
			n.AddChainedPod("", hostIf, name, here[conf.IPv4], here[conf.IPv6])
		case policytest.OnBridge:
			n.AddChainedPod(policytest.Bridge, hostIf, name, here[conf.IPv4], here[conf.IPv6])
		}
		for _, f := range conf.Families {
			n.AddOutside(elsewhere[f])
			here[f], elsewhere[f] = here[f].Next(), elsewhere[f].Next()
		}
	}
	for _, a := range policytest.Of {
		n.AddSelf(a.Node)
		n.AddOutside(a.Outside)
	}
	// These addresses are just inside and outside of the policies' ipBlocks.
	for _, a := range []string{
		"10.87.255.255", "10.88.1.0", "10.88.1.1", "10.88.2.0", "128.0.0.0", "128.0.0.1",
		"fd00:10:87:ffff:ffff:ffff:ffff:ffff", "fd00:10:88:1::", "fd00:10:88:1::1", "fd00:10:88:2::", "2001:db8:0:1::",
		"7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "8000::", "8000::1",
	} {
		n.AddOutside(netip.MustParseAddr(a))
	}
	return n
}

func randomState(seed uint64) policy.State {
	return policytest.State(rand.New(rand.NewPCG(seed, 6)))
}

func compare(t *testing.T, n *Node, seed uint64) (sent int) {
	t.Helper()
	state := randomState(seed)
	n.Bounds = policytest.Bounds(rand.New(rand.NewPCG(seed, 8)))
	packets := probes(n, state, policytest.Probes(rand.New(rand.NewPCG(seed, 7)), state, 10))
	difference := n.difference(state, packets)
	if difference == nil {
		return len(packets)
	}
	one := []ruleset.Packet{*difference}
	state = policytest.Shrink(state, func(s policy.State) bool { return n.difference(s, probes(n, s, one)) != nil })
	v := verdict.New(state).Evaluate(header(one[0]))
	t.Errorf("seed %d, %s: %+v arrived, or the kernel logged that audited policies would drop it, otherwise than the "+
		"policies say:\n%s\n%s", seed, n.Writer, header(one[0]), v, policytest.YAML(state))
	return len(packets)
}

// probes returns the packets without those that Send can't send. Send needs a host at each of the packet's two
// addresses, and for TCP and UDP a server on the port.
func probes(n *Node, s policy.State, packets []ruleset.Packet) []ruleset.Packet {
	attached := func(a netip.Addr) bool {
		if !policytest.Of[conf.FamilyOf(a)].Subnet.Contains(a) {
			return n.hosts[a] != nil
		}
		return slices.ContainsFunc(s.Endpoints, func(e policy.Endpoint) bool {
			return slices.ContainsFunc(e.Addresses, func(x policy.Address) bool { return x.Addr == a })
		})
	}
	return slices.DeleteFunc(policytest.At(s, packets), func(p ruleset.Packet) bool {
		answers := p.Proto != ruleset.TCP && p.Proto != ruleset.UDP || slices.Contains(n.Ports, p.Port)
		return !attached(p.Src) || !attached(p.Dst) || !answers
	})
}

func header(p ruleset.Packet) verdict.Packet {
	return verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}
}

// difference enforces the state and sends the packets. It returns a packet that arrived or was logged contrary to the
// policies, or nil if there is none.
func (n *Node) difference(s policy.State, packets []ruleset.Packet) *ruleset.Packet {
	n.Enforce(s)
	log := listen(n, 64<<20)
	defer log.close()
	evaluator := verdict.New(s)
	headers, expect := make([]verdict.Packet, len(packets)), make([]bool, len(packets))
	for i, p := range packets {
		headers[i] = header(p)
		expect[i] = evaluator.Evaluate(headers[i]).AllowedHere()
	}
	for i, got := range n.Send(headers, expect) {
		if got != expect[i] {
			return &packets[i]
		}
	}
	logged, count := log.audits(n), 0
	for i, p := range headers {
		v := evaluator.Evaluate(p)
		if !v.Allowed() || len(v.Egress.Either)+len(v.Ingress.Either) > 0 {
			continue
		}
		would := v.WouldDrop()
		for d, here := range map[ruleset.Direction]bool{ruleset.Egress: v.Egress.Here, ruleset.Ingress: v.Ingress.Here} {
			want := here && slices.Contains(would, d)
			if logged[audited{d, p}] != want {
				return &packets[i]
			}
			if want {
				count++
			}
		}
	}
	wouldDrops += count
	return nil
}
