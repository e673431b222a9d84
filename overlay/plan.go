// Package overlay owns the routes and tunnels to pods on other nodes. Compute plans them from the Node objects and this
// node's own routes; Overlay and Gate write them to the kernel.
//
// Its kernel objects:
//
//   - the VXLAN device weir-vxlan with its addresses, if this node reaches another node's pods through a tunnel
//   - a route of protocol 88 for each network of another node, unless routers between the nodes know the network
//   - a neighbour and a forwarding entry of weir-vxlan for each network behind the tunnel
//   - the nftables table "inet weir-tunnel", the gate
//
// Invariants:
//   - Nothing is learned from the network, and nothing is written to the Kubernetes API. The MAC of a tunnel's end
//     follows from the address of its node.
//   - Routes of other protocols are never changed.
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

// Encapsulation says which packets between pods of different nodes travel in tunnels.
type Encapsulation string

const (
	// Always encapsulates all packets. It works wherever nodes reach each other, also with EC2's source/destination
	// check.
	Always Encapsulation = "always"
	// CrossSubnet encapsulates packets to pods of nodes in other subnets.
	CrossSubnet Encapsulation = "crossSubnet"
	// Never means that no packet travels in a tunnel. Routers between subnets must know the pods' networks.
	Never Encapsulation = "never"
)

// ParseEncapsulation parses an encapsulation. An empty text means Always. An unknown text is an error.
func ParseEncapsulation(s string) (Encapsulation, error) {
	switch e := Encapsulation(cmp.Or(s, string(Always))); e {
	case Always, CrossSubnet, Never:
		return e, nil
	}
	return "", fmt.Errorf("encapsulation %q: must be always, crossSubnet or never", s)
}

// Overhead returns how many bytes of headers the tunnel adds to a packet (RFC 7348, section 4). The outer IP
// header has the family of local.
func Overhead(local netip.Addr) int {
	if local.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// Options must be the same on all nodes of a cluster.
type Options struct {
	Encapsulation Encapsulation
	// Port is the tunnels' UDP port. VNI has 24 bits and names weir's network in the tunnels.
	Port uint16
	VNI  uint32
}

func (o Options) Validate() error {
	if o.Port == 0 {
		return errors.New("the overlay's port: must be from 1 to 65535")
	}
	if o.VNI == 0 || o.VNI >= 1<<24 {
		return fmt.Errorf("the overlay's VNI %d: must be from 1 to %d", o.VNI, 1<<24-1)
	}
	return nil
}

// Path says by which link packets to an address leave the node, and how large they may be.
type Path struct {
	// MTU is in bytes. It is the smallest MTU of all links and routes that packets may take.
	MTU int
	// OnLink means that no router is on the way.
	OnLink bool
	// Link is the index of the link; 0 if packets may take one of several links.
	Link int
	// Unfit says why no node can have the address. It is empty if a node can have the address.
	Unfit string
}

type Paths interface {
	// To returns the path from one address to another. If from is invalid, the kernel chooses the source.
	To(from, to netip.Addr) (Path, error)
	// Uplink returns the path from the node's address to nodes that aren't known yet.
	Uplink(local netip.Addr) (Path, error)
}

// Plan is what the kernel should have of the overlay on this node.
type Plan struct {
	Options
	// NodeAddress is where all tunnels of this node begin. It is invalid while the node can't have an overlay.
	// Gateways are the first addresses of this node's podCIDRs, one of each family.
	NodeAddress netip.Addr
	Gateways    []netip.Addr
	Remotes     []Remote
	// Nodes has the addresses of all nodes, including this node. Networks has the networks of all pods. Own has the
	// networks of this node's pods. Packets from a network in Tunnelled come only out of tunnels.
	Nodes                    []netip.Addr
	Networks, Own, Tunnelled []netip.Prefix
	// MTU is for the pods' links. TunnelMTU is for the VXLAN device. Both are in bytes, and 0 means unknown.
	MTU, TunnelMTU int
	Problems       []ruleset.Problem
}

func (p Plan) gateway(a netip.Addr) netip.Addr { return firstOf(conf.FamilyOf(a), p.Gateways) }

// Equal reports whether both plans want the same in the kernel. It ignores problems.
func (p Plan) Equal(q Plan) bool {
	p.Problems, q.Problems = nil, nil
	return reflect.DeepEqual(p, q)
}

type Remote struct {
	Node    string
	Address netip.Addr
	Network netip.Prefix
	// Direct means that packets travel without the tunnel.
	Direct bool
	// Link is the index of the link of direct packets; 0 if they may take one of several links.
	Link int
}

// via returns the next hop of the network's route through the tunnel: an address of the tunnel's far end. For IPv4
// it is the network's first address. For IPv6 it is a link-local address made from the MAC, because the kernel
// refuses a next hop to which another route leads.
func (p Remote) via() netip.Addr {
	if p.Network.Addr().Is4() {
		return p.Network.Addr()
	}
	local := [16]byte{0: 0xfe, 1: 0x80}
	copy(local[10:], MAC(p.Address))
	return netip.AddrFrom16(local)
}

// MAC returns the MAC of the tunnel's end at this node address. Two IPv6 addresses may have the same MAC.
func MAC(node netip.Addr) net.HardwareAddr {
	b := node.AsSlice()
	if node.Is6() {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}

// Compute plans the overlay of the node self. The caller passes the nodes in the order of their creation, with only
// their accepted claims (see claims.Settle).
//
//   - All tunnels have one family: that of this node's first address.
//   - Packets without a tunnel need an address of their own family at the other node.
//   - If Nodes exist, but none of the name self, this is a problem, and the node has no overlay.
//   - A Node that lacks an address or a network has no Remote until it has both.
//   - A network of a family in which this node has no network has no Remote.
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
	if len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n policy.Node) bool { return n.Name == self }) {
		c.report(self, "metadata.name", "there is no Node of this name, so this node can't have pods nor reach those of "+
			"others: compare the agent's --node-name (or NODE_NAME) with the names of the Nodes")
	}
	c.setMTUs()
	return c.Plan
}

type planner struct {
	Plan
	self           string
	paths          Paths
	macs           map[string]string // names of nodes, by the MAC of the tunnel's end
	leastMTU       int               // smallest MTU of all paths to nodes, in bytes
	leastTunnelMTU int               // smallest MTU of the paths that tunnels take, in bytes
}

func (c *planner) report(node, field, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	c.Problems = append(c.Problems, ruleset.Problem{Object: "Node " + node, Field: field, Message: message})
}

// add plans how the other node's networks are reached. Unless tunnels are off (Never), a network that can't be reached
// also counts as behind a tunnel. So the gate drops all packets from this network: they are forged.
func (c *planner) add(n policy.Node) {
	foreign := 0 // the number of networks of a family in which this node has no network
	for _, network := range n.PodCIDRs {
		if c.NodeAddress.IsValid() && !c.gateway(network.Addr()).IsValid() {
			foreign++
			c.requireTunnel(network)
			continue
		}
		if len(n.Addresses) == 0 {
			c.requireTunnel(network)
			continue
		}
		remote, ok := c.route(n, network)
		if ok && remote.Address.IsValid() {
			c.Remotes = append(c.Remotes, remote)
		}
		if !remote.Direct {
			c.requireTunnel(network)
		}
	}
	if foreign > 0 && foreign == len(n.PodCIDRs) && len(n.Addresses) > 0 {
		c.report(n.Name, "spec.podCIDRs",
			"there is no network of a family that this node has one of; its pods can't be reached")
	}
}

func (c *planner) requireTunnel(network netip.Prefix) {
	if c.Encapsulation != Never {
		c.Tunnelled = append(c.Tunnelled, network)
	}
}

// route returns false if the network can't be reached. If routers between the nodes know the network, the Remote
// has no address, and weir makes no route.
func (c *planner) route(n policy.Node, network netip.Prefix) (Remote, bool) {
	inner, outer := conf.FamilyOf(network.Addr()), conf.FamilyOf(cmp.Or(c.NodeAddress, n.Addresses[0]))
	p := Remote{Node: n.Name, Network: network}
	missing := func(f conf.Family) (Remote, bool) {
		c.report(n.Name, "status.addresses",
			"there is no %s InternalIP that counts, to which packets for %s would be sent; its pods can't be reached",
			f, network)
		return p, false
	}
	if direct := firstOf(inner, n.Addresses); c.Encapsulation != Always && direct.IsValid() {
		path, ok := c.path(n.Name, netip.Addr{}, direct)
		switch {
		case ok && path.OnLink:
			p.Address, p.Direct, p.Link = direct, true, path.Link
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
	other, used := c.macs[mac]
	own := p.Address.Is6() && c.NodeAddress.IsValid() && mac == MAC(c.NodeAddress).String()
	if used && other != n.Name || own {
		// Two IPv6 addresses may have the same MAC, because a MAC is shorter than an IPv6 address.
		c.report(n.Name, "status.addresses",
			"the tunnel's end at %s has the same MAC as that of node %s; its pods can't be reached",
			p.Address, cmp.Or(other, c.self))
		return p, false
	}
	c.macs[mac] = n.Name
	c.leastMTU, c.leastTunnelMTU = smallest(c.leastMTU, path.MTU), smallest(c.leastTunnelMTU, path.MTU)
	return p, true
}

// path returns the path to the other node's address, or false if no other node can have this address. If the look-up
// fails, it returns an empty Path and true: with false, the existing tunnel to the node would be removed.
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

// setMTUs computes MTU and TunnelMTU from the smallest MTU of the paths to other nodes. If no such path is known, it
// takes the uplink's MTU instead.
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
			"the path to other nodes takes packets of at most %d bytes, so pods' large packets travel in fragments", c.leastMTU)
		c.MTU = least
	}
	c.TunnelMTU = max(min(c.leastTunnelMTU-Overhead(c.NodeAddress), largest), least)
}

func smallest(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func firstOf(f conf.Family, addrs []netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return conf.FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}
	}
	return addrs[i]
}
