// Package overlay owns the way to pods on other nodes: one VXLAN device, and for each node a route, a neighbour and a
// forwarding entry, all made from the Node objects alone. Nothing is learned from the network and nothing is written to
// the Kubernetes API: a tunnel end's MAC follows from its node's address.
package overlay

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

// Encapsulation says which packets between nodes travel inside the nodes' own UDP packets.
type Encapsulation string

const (
	// Always is the default: it needs nothing of the network but that nodes reach each other, and works with EC2's
	// source/destination check on.
	Always Encapsulation = "always"
	// CrossSubnet encapsulates between subnets only; within one, packets go as they are.
	CrossSubnet Encapsulation = "crossSubnet"
	// Never encapsulates nothing: packets go as they are within a subnet, and beyond it the network must know the way.
	Never Encapsulation = "never"
)

// Parse reads an encapsulation; empty means Always.
func Parse(s string) (Encapsulation, error) {
	switch e := Encapsulation(cmp.Or(s, string(Always))); e {
	case Always, CrossSubnet, Never:
		return e, nil
	}
	return "", fmt.Errorf("encapsulation %q: must be always, crossSubnet or never", s)
}

// Overhead is what a tunnel from the address takes of a packet's size: outer IPv4 or IPv6, UDP, VXLAN and inner Ethernet
// headers (RFC 7348, section 4), in bytes.
func Overhead(local netip.Addr) int {
	if local.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// Plan is what this node's overlay should be.
type Plan struct {
	// Local is the node's own address, the tunnels' near end, whose family is that of all tunnels; packets of both travel
	// inside. Gateways are the addresses that the node has in the pods' networks, one of each family, for what it sends
	// itself to pods elsewhere. There are none if the node isn't ready for an overlay.
	Local    netip.Addr
	Gateways []netip.Addr
	Peers    []Peer
	Problems []policy.Problem
}

// gateway is the one of that address's family; invalid if there is none.
func (p Plan) gateway(a netip.Addr) netip.Addr { return firstOf(conf.FamilyOf(a), p.Gateways) }

// Peer is another node, or one of several networks of it.
type Peer struct {
	Node    string
	Address netip.Addr
	Network netip.Prefix
	// Direct packets go as they are; others through the tunnel.
	Direct bool
}

// Via is the address that stands for the peer's tunnel end inside: in IPv4 its network's first, which no pod has; in IPv6
// a link-local one that ends as the tunnel end's MAC. There the kernel takes no other that some route leads elsewhere, be
// it the one that is to be replaced.
func (p Peer) Via() netip.Addr {
	if p.Network.Addr().Is4() {
		return p.Network.Addr()
	}
	local := [16]byte{0: 0xfe, 1: 0x80}
	copy(local[10:], MAC(p.Address))
	return netip.AddrFrom16(local)
}

// MAC of the tunnel end at that address. Of IPv6 addresses it is made from all of it.
func MAC(node netip.Addr) net.HardwareAddr {
	b := node.AsSlice()
	if node.Is6() {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}

// Compute plans the overlay of the node named self. sameSubnet says whether an address is on one of the node's own
// links. The tunnels go between the nodes' addresses of the family that this one's first is of; what goes as it is needs
// an address of its own family at the other end. A Node without an address or a network is left out until it has one; of
// two that claim the same addresses, the one whose name comes first has them. Both are reported. Networks of a family
// that this node has none of are left out too: nobody here speaks it.
func Compute(self string, e Encapsulation, nodes []policy.Node, sameSubnet func(netip.Addr) bool) Plan {
	var plan Plan
	report := func(node, field, format string, args ...any) {
		plan.Problems = append(plan.Problems, policy.Problem{Object: "Node " + node, Field: field, Message: fmt.Sprintf(format, args...)})
	}
	type claim struct {
		node    string
		network netip.Prefix
	}
	var claims []claim
	sorted := slices.SortedFunc(slices.Values(nodes), func(a, b policy.Node) int {
		// The node itself comes first: its own pods' addresses are nobody else's.
		return cmp.Or(-cmp.Compare(isSelf(a, self), isSelf(b, self)), cmp.Compare(a.Name, b.Name))
	})
	for _, n := range sorted {
		if len(n.Addresses) == 0 {
			report(n.Name, "status.addresses", "there is no InternalIP; %s", consequence(n.Name == self))
			continue
		}
		if len(n.PodCIDRs) == 0 {
			report(n.Name, "spec.podCIDRs", "there is no network; %s", consequence(n.Name == self))
			continue
		}
		strange := 0 // networks of families that this node has none of
		for _, network := range n.PodCIDRs {
			if i := slices.IndexFunc(claims, func(c claim) bool { return c.network.Overlaps(network) }); i >= 0 {
				report(n.Name, "spec.podCIDRs", "%s overlaps %s of node %s, which keeps it", network, claims[i].network, claims[i].node)
				continue
			}
			claims = append(claims, claim{n.Name, network})
			if n.Name == self {
				plan.Local = n.Addresses[0]
				if !plan.gateway(network.Addr()).IsValid() {
					plan.Gateways = append(plan.Gateways, network.Addr())
				}
				continue
			}
			if plan.Local.IsValid() && !plan.gateway(network.Addr()).IsValid() {
				strange++
				continue
			}
			peer, missing := way(e, plan.Local, n, network, sameSubnet)
			switch {
			case missing != "":
				report(n.Name, "status.addresses", "there is no %s InternalIP, to which packets for %s would be sent; its pods can't be reached", missing, network)
			case peer.Address.IsValid():
				plan.Peers = append(plan.Peers, peer)
			}
		}
		if strange == len(n.PodCIDRs) {
			report(n.Name, "spec.podCIDRs", "there is no network of a family that this node has one of; its pods can't be reached")
		}
	}
	return plan
}

// way is how the network of the node is reached: directly, through a tunnel from the local address, or by a way that the
// network between the nodes knows, which is no peer. missing is the family of which the node has no address.
func way(e Encapsulation, local netip.Addr, n policy.Node, network netip.Prefix, sameSubnet func(netip.Addr) bool) (p Peer, missing string) {
	inner, outer := conf.FamilyOf(network.Addr()), conf.FamilyOf(cmp.Or(local, n.Addresses[0]))
	p = Peer{Node: n.Name, Network: network}
	direct := firstOf(inner, n.Addresses)
	switch {
	case e != Always && direct.IsValid() && sameSubnet(direct):
		p.Address, p.Direct = direct, true
	case e == Never:
		if !direct.IsValid() {
			return p, inner.String()
		}
	default:
		if p.Address = firstOf(outer, n.Addresses); !p.Address.IsValid() {
			return p, outer.String()
		}
	}
	return p, ""
}

func consequence(self bool) string {
	if self {
		return "this node can't have pods nor reach those of others"
	}
	return "its pods can't be reached"
}

func isSelf(n policy.Node, self string) int {
	if n.Name == self {
		return 1
	}
	return 0
}

// firstOf the addresses that is of the family; invalid if none is.
func firstOf(f conf.Family, addrs []netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return conf.FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}
	}
	return addrs[i]
}
