package policytest

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

var uplink = ruleset.Link{In: "eth0"}

func interfaces(s policy.State) map[netip.Addr]ruleset.Link {
	where := map[netip.Addr]ruleset.Link{}
	for _, a := range Of {
		where[a.Outside] = uplink
	}
	for _, p := range s.Pods {
		for _, a := range p.Addresses {
			where[a] = uplink
		}
	}
	for _, a := range Of {
		where[a.Node] = ruleset.Link{}
	}
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			where[a.Addr] = policy.LinkOf(e)
		}
	}
	return where
}

func between(where map[netip.Addr]ruleset.Link, f func(ruleset.Packet)) {
	all := slices.SortedFunc(maps.Keys(where), netip.Addr.Compare)
	for _, src := range all {
		for _, dst := range all {
			p := ruleset.Packet{In: where[src].In, InPort: where[src].Port, Out: where[dst].In, Src: src, Dst: dst}
			if checked(p) {
				f(p)
			}
		}
	}
}

func checked(p ruleset.Packet) bool {
	return p.Src.BitLen() == p.Dst.BitLen() && p.In != "" && (p.In != uplink.In || p.Out != uplink.In)
}

// At returns copies of the packets in which In, InPort and Out are the links by which the packet passes the state's
// node. It leaves out packets that weir doesn't check.
func At(s policy.State, packets []ruleset.Packet) []ruleset.Packet {
	where := interfaces(s)
	var all []ruleset.Packet
	for _, p := range packets {
		p.In, p.InPort, p.Out = uplink.In, "", uplink.In
		if in, ok := where[p.Src]; ok {
			p.In, p.InPort = in.In, in.Port
		}
		if out, ok := where[p.Dst]; ok {
			p.Out = out.In
		}
		if checked(p) {
			all = append(all, p)
		}
	}
	return all
}

// Packets returns packets that begin a connection and that weir checks on this node. They go between pods, the node and
// an address outside of the cluster, with several protocols and ports.
func Packets(s policy.State) []ruleset.Packet {
	var all []ruleset.Packet
	between(interfaces(s), func(p ruleset.Packet) {
		for _, p.Port = range []uint16{80, 81, 82, 443} {
			for _, p.Proto = range []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP, icmp(p.Dst)} {
				all = append(all, p)
			}
		}
	})
	return all
}

func icmp(dst netip.Addr) ruleset.Protocol {
	if dst.Is4() {
		return "1"
	}
	return "58"
}

// Probes returns random packets. Most of the packets go to a port that a policy names, or to the port next to it. Some
// have the first address of an ipBlock, or an address next to it. The parameter "each" is the number of packets for
// each pair of addresses.
func Probes(r *rand.Rand, s policy.State, each int) []ruleset.Packet {
	where := interfaces(s)
	for _, text := range blocks {
		if r.IntN(4) > 0 {
			continue
		}
		block := netip.MustParsePrefix(text)
		for _, a := range []netip.Addr{block.Addr(), block.Addr().Prev(), block.Addr().Next()} {
			if _, ok := where[a]; !ok && a.IsValid() && !local(a) {
				where[a] = uplink
			}
		}
	}
	edges, anything := ofState(s), ofNumbers()
	var all []ruleset.Packet
	between(where, func(p ruleset.Packet) {
		for range each {
			to := pick(r, anything)
			if len(edges) > 0 && r.IntN(4) > 0 {
				to = pick(r, edges)
			}
			if p.Proto, p.Port = to.proto, to.port; to.proto == "" {
				p.Proto = icmp(p.Dst)
			}
			all = append(all, p)
		}
	})
	return all
}

type target struct {
	proto ruleset.Protocol
	port  uint16
}

func ofState(s policy.State) []target {
	var all []target
	for _, np := range s.Policies {
		var named []networkingv1.NetworkPolicyPort
		for _, r := range np.Spec.Ingress {
			named = append(named, r.Ports...)
		}
		for _, r := range np.Spec.Egress {
			named = append(named, r.Ports...)
		}
		for _, p := range named {
			proto := ruleset.TCP
			if p.Protocol != nil {
				proto = ruleset.Protocol(strings.ToLower(string(*p.Protocol)))
			}
			switch {
			case p.Port == nil || !slices.Contains(protos, proto):
			case p.Port.Type == intstr.String:
				for _, pod := range s.Pods {
					for _, n := range pod.Ports {
						if n.Name == p.Port.StrVal {
							all = append(all, target{n.Proto, n.Number})
						}
					}
				}
			default:
				from, to := p.Port.IntVal, p.Port.IntVal
				if p.EndPort != nil {
					to = *p.EndPort
				}
				for _, n := range []int32{from - 1, from, from, to, to + 1} {
					all = append(all, target{proto, uint16(n)})
				}
			}
		}
	}
	return all
}

var protos = []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP}

func ofNumbers() []target {
	all := []target{{"", 0}}
	for _, proto := range protos {
		for _, n := range []uint16{0, 1, 65535} {
			all = append(all, target{proto, n})
		}
		for _, n := range numbers {
			for _, n := range []int32{n - 1, n, n + 1, n + 2} {
				all = append(all, target{proto, uint16(n)})
			}
		}
	}
	return all
}
