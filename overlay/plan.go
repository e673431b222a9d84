// Package overlay owns the way to pods on other nodes: one VXLAN device, and for each node a route, a neighbour and a
// forwarding entry, all made from the Node objects alone. Nothing is learned from the network and nothing is written to
// the Kubernetes API: a tunnel end's MAC follows from its node's address.
package overlay

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
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
func ParseEncapsulation(s string) (Encapsulation, error) {
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

// Options are what all nodes of a cluster must agree on.
type Options struct {
	Encapsulation Encapsulation
	// Port is the tunnels' UDP port, and VNI the 24 bits that name weir's network there.
	Port uint16
	VNI  uint32
}

// Validate says what of the options can't be.
func (o Options) Validate() error {
	if o.Port == 0 {
		return errors.New("the overlay's port: must be from 1 to 65535")
	}
	if o.VNI == 0 || o.VNI >= 1<<24 {
		return fmt.Errorf("the overlay's VNI %d: must be from 1 to %d", o.VNI, 1<<24-1)
	}
	return nil
}

// Path is how packets leave the node for an address.
type Path struct {
	// MTU is the smallest of the links and routes that they may take, in bytes.
	MTU int
	// OnLink says that the address is on a link of the node's, without a router between.
	OnLink bool
	// Unfit says why no other node can have that address; empty if one can.
	Unfit string
}

// Paths knows the node's routes.
type Paths interface {
	// To is the path to the address of what the node sends from the other one; from may be invalid.
	To(from, to netip.Addr) (Path, error)
	// Uplink is the path to nodes that aren't known yet, from the node's address.
	Uplink(local netip.Addr) (Path, error)
}

// Plan is what this node's overlay should be.
type Plan struct {
	Options
	// Local is the node's own address, the tunnels' near end, whose family is that of all tunnels; packets of both travel
	// inside. Gateways are the addresses that the node has in the pods' networks, one of each family, for what it sends
	// itself to pods elsewhere. There are none if the node isn't ready for an overlay.
	NodeAddress netip.Addr
	Gateways    []netip.Addr
	Remotes     []Remote
	// Nodes are the addresses of all nodes, this one too; Networks those of all pods, Own of this node's pods, and
	// Tunnelled of those whose packets come out of tunnels only.
	Nodes                    []netip.Addr
	Networks, Own, Tunnelled []netip.Prefix
	// MTU of the pods' links, and TunnelMTU of the VXLAN device, in bytes; 0 while no path is known.
	MTU, TunnelMTU int
	Problems       []ruleset.Problem
}

// gateway is the one of that address's family; invalid if there is none.
func (p Plan) gateway(a netip.Addr) netip.Addr { return firstOf(conf.FamilyOf(a), p.Gateways) }

// Equal says whether the plans ask the same of the kernel.
func (p Plan) Equal(q Plan) bool {
	p.Problems, q.Problems = nil, nil
	return reflect.DeepEqual(p, q)
}

// Peer is another node, or one of several networks of it.
type Remote struct {
	Node    string
	Address netip.Addr
	Network netip.Prefix
	// Direct packets go as they are; others through the tunnel.
	Direct bool
}

// Via is the address that stands for the peer's tunnel end inside: in IPv4 its network's first, which no pod has; in IPv6
// a link-local one that ends as the tunnel end's MAC. There the kernel takes no other that some route leads elsewhere, be
// it the one that is to be replaced.
func (p Remote) Via() netip.Addr {
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

// Compute plans the overlay of the node named self. Of the nodes only what counts is there, in the order in which they
// were created (policy.Settle). The tunnels go between the nodes' addresses of the family that this one's first is of;
// what goes as it is needs an address of its own family at the other end. A Node without an address or a network is
// left out until it has one. Networks of a family that this node has none of are left out too: nobody here speaks it.
func Compute(self string, o Options, nodes []policy.Node, paths Paths) Plan {
	c := planner{Plan: Plan{Options: o}, self: self, paths: paths, macs: map[string]string{}}
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, n.Addresses...)
		c.Networks = append(c.Networks, n.PodCIDRs...)
		if n.Name != self || len(n.Addresses) == 0 || len(n.PodCIDRs) == 0 {
			continue
		}
		c.NodeAddress, c.Own = n.Addresses[0], n.PodCIDRs
		for _, network := range n.PodCIDRs {
			if !c.gateway(network.Addr()).IsValid() {
				c.Gateways = append(c.Gateways, network.Addr())
			}
		}
	}
	for _, n := range nodes {
		if n.Name != self {
			c.add(n)
		}
	}
	c.setMTUs()
	return c.Plan
}

// computing is a plan on its way.
type planner struct {
	Plan
	self        string
	paths       Paths
	macs        map[string]string // of tunnel ends, and whose they are
	leastMTU       int               // MTU of all paths to nodes, in bytes
	leastTunnelMTU int               // of those that tunnels take
}

func (c *planner) report(node, field, format string, args ...any) {
	c.Problems = append(c.Problems, ruleset.Problem{Object: "Node " + node, Field: field, Message: fmt.Sprintf(format, args...)})
}

// add plans the ways to the other node's networks. What this node has no way to through a tunnel has none from there
// either, so packets under such addresses come from nobody.
func (c *planner) add(n policy.Node) {
	strange := 0 // networks of families that this node has none of
	for _, network := range n.PodCIDRs {
		if c.NodeAddress.IsValid() && !c.gateway(network.Addr()).IsValid() {
			strange++
			c.requireTunnel(network)
			continue
		}
		if len(n.Addresses) == 0 {
			c.requireTunnel(network)
			continue
		}
		peer, ok := c.route(n, network)
		if ok && peer.Address.IsValid() {
			c.Remotes = append(c.Remotes, peer)
		}
		if !peer.Direct {
			c.requireTunnel(network)
		}
	}
	if strange > 0 && strange == len(n.PodCIDRs) && len(n.Addresses) > 0 {
		c.report(n.Name, "spec.podCIDRs", "there is no network of a family that this node has one of; its pods can't be reached")
	}
}

// close has packets under the network's addresses come out of tunnels only.
func (c *planner) requireTunnel(network netip.Prefix) {
	if c.Encapsulation != Never {
		c.Tunnelled = append(c.Tunnelled, network)
	}
}

// way is how the network of the node is reached: directly, through a tunnel from the local address, or by a way that
// the network between the nodes knows, which is no peer. It is false if there is none.
func (c *planner) route(n policy.Node, network netip.Prefix) (Remote, bool) {
	inner, outer := conf.FamilyOf(network.Addr()), conf.FamilyOf(cmp.Or(c.NodeAddress, n.Addresses[0]))
	p := Remote{Node: n.Name, Network: network}
	missing := func(f conf.Family) (Remote, bool) {
		c.report(n.Name, "status.addresses",
			"there is no %s InternalIP that counts, to which packets for %s would be sent; its pods can't be reached", f, network)
		return p, false
	}
	if direct := firstOf(inner, n.Addresses); c.Encapsulation != Always && direct.IsValid() {
		path, ok := c.path(n.Name, netip.Addr{}, direct)
		switch {
		case ok && path.OnLink:
			p.Address, p.Direct = direct, true
			c.leastMTU = smallest(c.leastMTU, path.MTU)
			return p, true
		case c.Encapsulation == Never:
			c.leastMTU = smallest(c.leastMTU, path.MTU)
			return p, ok
		}
	} else if c.Encapsulation == Never {
		return missing(inner)
	}
	if p.Address = firstOf(outer, n.Addresses); !p.Address.IsValid() {
		return missing(outer)
	}
	path, ok := c.path(n.Name, c.NodeAddress, p.Address)
	if !ok {
		return p, false
	}
	mac := MAC(p.Address).String()
	if other, taken := c.macs[mac]; taken && other != n.Name || p.Address.Is6() && c.NodeAddress.IsValid() && mac == MAC(c.NodeAddress).String() {
		// Of IPv6 addresses a MAC holds too little to tell all apart, and two can be chosen so that it doesn't.
		c.report(n.Name, "status.addresses", "the tunnel's end at %s has the same MAC as that of node %s; its pods can't be reached",
			p.Address, cmp.Or(other, c.self))
		return p, false
	}
	c.macs[mac] = n.Name
	c.leastMTU, c.leastTunnelMTU = smallest(c.leastMTU, path.MTU), smallest(c.leastTunnelMTU, path.MTU)
	return p, true
}

// path asks for the path to the node's address. It is false if no other node can have that address. One that isn't
// known, as while the node has no route yet, is a problem, and no reason to take a tunnel away.
func (c *planner) path(node string, from, to netip.Addr) (Path, bool) {
	path, err := c.paths.To(from, to)
	switch {
	case err != nil:
		c.report(node, "status.addresses", "it isn't known how packets get to %s: %v", to, err)
		return Path{}, true
	case path.Unfit != "":
		c.report(node, "status.addresses", "the InternalIP %s is %s; its pods can't be reached", to, path.Unfit)
		return Path{}, false
	}
	return path, true
}

// measure finds how large packets may be. Until there are other nodes, that is up to the way to them.
func (c *planner) setMTUs() {
	if !c.NodeAddress.IsValid() {
		return
	}
	if c.leastMTU == 0 {
		path, err := c.paths.Uplink(c.NodeAddress)
		if err != nil {
			c.report(c.self, "status.addresses", "it isn't known how large packets may be: %v", err)
			return
		}
		c.leastMTU = path.MTU
	}
	c.leastTunnelMTU = cmp.Or(c.leastTunnelMTU, c.leastMTU)
	overhead := 0
	if c.Encapsulation != Never {
		overhead = Overhead(c.NodeAddress)
	}
	six := slices.ContainsFunc(c.Own, func(p netip.Prefix) bool { return p.Addr().Is6() })
	least, largest := conf.MTURange(six)
	if c.MTU = min(c.leastMTU-overhead, largest); c.MTU < least {
		c.report(c.self, "status.addresses",
			"the way to other nodes takes packets of %d bytes only, so large ones of pods go in fragments", c.leastMTU)
		c.MTU = least
	}
	c.TunnelMTU = max(min(c.leastTunnelMTU-Overhead(c.NodeAddress), largest), least)
}

// smallest is the smaller of two sizes, of which 0 is unknown.
func smallest(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// firstOf the addresses that is of the family; invalid if none is.
func firstOf(f conf.Family, addrs []netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return conf.FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}
	}
	return addrs[i]
}
