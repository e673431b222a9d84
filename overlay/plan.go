// Package overlay owns the way to pods on other nodes: one VXLAN device, and for each node a route, a neighbour and a
// forwarding entry, all made from the Node objects alone. Nothing is learned from the network and nothing is written to
// the Kubernetes API: a tunnel end's MAC follows from its node's address.
package overlay

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

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

// Overhead is what a tunnel takes of a packet's size over IPv4: outer IPv4, UDP, VXLAN and inner Ethernet headers
// (RFC 7348, section 4), in bytes.
const Overhead = 20 + 8 + 8 + 14

// Plan is what this node's overlay should be.
type Plan struct {
	// Local is the node's own address, the tunnels' near end; Gateway the address that the node has in the pods'
	// network for what it sends itself to pods elsewhere. Both are invalid if the node isn't ready for an overlay.
	Local, Gateway netip.Addr
	Peers          []Peer
	Problems       []policy.Problem
}

// Peer is another node, or one of several networks of it.
type Peer struct {
	Node    string
	Address netip.Addr
	Network netip.Prefix
	// Direct packets go as they are; others through the tunnel.
	Direct bool
}

// Via is the address that stands for the peer's tunnel end: its network's first, which no pod has.
func (p Peer) Via() netip.Addr { return p.Network.Addr() }

// MAC of the tunnel end at that address.
func MAC(node netip.Addr) net.HardwareAddr {
	b := node.As16()
	return net.HardwareAddr{0x0e, 0x58, b[12], b[13], b[14], b[15]}
}

// Compute plans the overlay of the node named self. sameSubnet says whether an address is on one of the node's own
// links. A Node without an address or a network is left out until it has one; of two that claim the same addresses, the
// one whose name comes first has them. Both are reported.
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
		address, ok := firstIPv4(n.Addresses)
		if !ok {
			report(n.Name, "status.addresses", "there is no IPv4 InternalIP; its pods can't be reached")
			continue
		}
		var networks []netip.Prefix
		for _, p := range n.PodCIDRs {
			if p.Addr().Is4() {
				networks = append(networks, p)
			}
		}
		if len(networks) == 0 {
			report(n.Name, "spec.podCIDRs", "there is no IPv4 network; its pods can't be reached")
			continue
		}
		for _, network := range networks {
			if i := slices.IndexFunc(claims, func(c claim) bool { return c.network.Overlaps(network) }); i >= 0 {
				report(n.Name, "spec.podCIDRs", "%s overlaps %s of node %s, which keeps it", network, claims[i].network, claims[i].node)
				continue
			}
			claims = append(claims, claim{n.Name, network})
			if n.Name == self {
				plan.Local, plan.Gateway = address, network.Addr()
				continue
			}
			direct := e == Never || (e == CrossSubnet && sameSubnet(address))
			if e == Never && !sameSubnet(address) {
				continue // the network knows the way
			}
			plan.Peers = append(plan.Peers, Peer{n.Name, address, network, direct})
		}
	}
	return plan
}

func isSelf(n policy.Node, self string) int {
	if n.Name == self {
		return 1
	}
	return 0
}

func firstIPv4(addrs []netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, netip.Addr.Is4)
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}
