// Package overlay owns the routes and tunnels to pods on other nodes. Compute plans them from the Node objects and this
// node's own routes; Overlay and Gate write them to the kernel.
//
// Its kernel objects:
//
//   - the VXLAN device weir-vxlan with its addresses, which doesn't exist where no node needs a tunnel
//   - for each network of another node a route of protocol 88, and if it is reached through the tunnel, a neighbour and
//     a forwarding entry of weir-vxlan; no route if routers between the nodes know the network
//   - the nftables table "inet weir-tunnel", the gate
//
// Invariants:
//
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

// Encapsulation says which packets between pods of different nodes travel inside the nodes' own UDP packets.
type Encapsulation string

const (
	// Always means that all of these packets are encapsulated. It is the default, because it works wherever nodes reach
	// each other, also with EC2's source/destination check on.
	Always Encapsulation = "always"
	// CrossSubnet means that only packets to nodes in other subnets are encapsulated.
	CrossSubnet Encapsulation = "crossSubnet"
	// Never means that no packet is encapsulated. Routers between subnets must know the pods' networks.
	Never Encapsulation = "never"
)

// ParseEncapsulation reads an encapsulation; empty means Always. It returns an error for an unknown one.
func ParseEncapsulation(s string) (Encapsulation, error) {
	switch e := Encapsulation(cmp.Or(s, string(Always))); e {
	case Always, CrossSubnet, Never:
		return e, nil
	}
	return "", fmt.Errorf("encapsulation %q: must be always, crossSubnet or never", s)
}

// Overhead returns the size in bytes of the headers that a tunnel from the address adds to a packet: outer IPv4 or
// IPv6, UDP, VXLAN and inner Ethernet (RFC 7348, section 4).
func Overhead(local netip.Addr) int {
	if local.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// Options must be the same on all nodes of a cluster.
type Options struct {
	Encapsulation Encapsulation
	// Port is the tunnels' UDP port, and VNI the 24 bits that name weir's network there.
	Port uint16
	VNI  uint32
}

// Validate returns an error for the first option that is out of range.
func (o Options) Validate() error {
	if o.Port == 0 {
		return errors.New("the overlay's port: must be from 1 to 65535")
	}
	if o.VNI == 0 || o.VNI >= 1<<24 {
		return fmt.Errorf("the overlay's VNI %d: must be from 1 to %d", o.VNI, 1<<24-1)
	}
	return nil
}

// Path is the path by which packets leave the node for an address.
type Path struct {
	// MTU is the smallest MTU of the links and routes that packets may take, in bytes.
	MTU int
	// OnLink means that the address is on one of the node's links, without a router between.
	OnLink bool
	// Link is the index of the link that packets take; 0 if they may take several.
	Link int
	// Unfit says why the address can't be another node's; empty if it can.
	Unfit string
}

// Paths knows the node's routes.
type Paths interface {
	// To returns the path that packets from one address take to the other. If from is invalid, the kernel chooses
	// the source.
	To(from, to netip.Addr) (Path, error)
	// Uplink returns the path from the node's address to nodes that aren't known yet.
	Uplink(local netip.Addr) (Path, error)
}

// Plan is what the kernel should have of the overlay on this node.
type Plan struct {
	Options
	// NodeAddress is the node's own address, the near end of all tunnels. It is invalid while the node can't have
	// an overlay. All tunnels have its family, and packets of both families travel inside. Gateways are the node's
	// addresses in the pods' networks, one of each family. The node sends from them to pods on other nodes.
	NodeAddress netip.Addr
	Gateways    []netip.Addr
	Remotes     []Remote
	// Nodes has the addresses of all nodes, including this one. Networks has the networks of all pods, and Own
	// those of this node's pods. Packets from the networks in Tunnelled come only out of tunnels.
	Nodes                    []netip.Addr
	Networks, Own, Tunnelled []netip.Prefix
	// MTU is the MTU of the pods' links, and TunnelMTU the MTU of the VXLAN device, in bytes. Both are 0 while no path is
	// known.
	MTU, TunnelMTU int
	Problems       []ruleset.Problem
}

func (p Plan) gateway(a netip.Addr) netip.Addr { return firstOf(conf.FamilyOf(a), p.Gateways) }

// Equal reports whether both plans ask the same of the kernel. It ignores their problems.
func (p Plan) Equal(q Plan) bool {
	p.Problems, q.Problems = nil, nil
	return reflect.DeepEqual(p, q)
}

// Remote is a network of another node. A node with several networks has a Remote for each.
type Remote struct {
	Node    string
	Address netip.Addr
	Network netip.Prefix
	// Direct means that packets travel without the tunnel.
	Direct bool
	// Link is the index of the link that direct packets take; 0 if they may take several.
	Link int
}

// Via returns the next hop of the remote network's route through the tunnel: an address of the tunnel's far end.
//
//   - IPv4: the first address of the remote network, which no pod has.
//   - IPv6: a link-local address that ends as the MAC of the tunnel's end. The kernel refuses a next hop if a
//     route to it leads elsewhere, even if that route is about to be replaced.
func (p Remote) Via() netip.Addr {
	if p.Network.Addr().Is4() {
		return p.Network.Addr()
	}
	local := [16]byte{0: 0xfe, 1: 0x80}
	copy(local[10:], MAC(p.Address))
	return netip.AddrFrom16(local)
}

// MAC returns the MAC of the tunnel's end on the node with that address. Its last four bytes are the IPv4 address,
// or a hash of the IPv6 address.
func MAC(node netip.Addr) net.HardwareAddr {
	b := node.AsSlice()
	if node.Is6() {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}

// Compute plans the overlay of the node self. nodes are in the order of their creation, and without the addresses and
// networks that don't count (see claims.Settle).
//
//   - Tunnels go between the nodes' addresses of one family: that of this node's first address.
//   - Packets without a tunnel need an address of their own family at the other node.
//   - A Node without an address or a network is left out until it has one.
//   - A network of a family that this node has no network of is left out: this node has no addresses of that family.
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

type planner struct {
	Plan
	self           string
	paths          Paths
	macs           map[string]string // node by the MAC of its tunnel's end
	leastMTU       int               // smallest MTU of all paths to nodes, in bytes
	leastTunnelMTU int               // smallest MTU of the paths that tunnels take, in bytes
}

func (c *planner) report(node, field, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	c.Problems = append(c.Problems, ruleset.Problem{Object: "Node " + node, Field: field, Message: message})
}

// add plans how the other node's networks are reached. It calls requireTunnel for every network that isn't reached
// directly, also for one that can't be reached. The gate then drops packets from such a network: they are forged.
func (c *planner) add(n policy.Node) {
	foreign := 0 // networks of families that this node has none of
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

// requireTunnel plans that packets from the network come only out of tunnels. With Never it does nothing.
func (c *planner) requireTunnel(network netip.Prefix) {
	if c.Encapsulation != Never {
		c.Tunnelled = append(c.Tunnelled, network)
	}
}

// route plans how the node's network is reached: directly, through a tunnel, or by routers between the nodes. In
// the last case the Remote has no address, and weir makes no route. It returns false if the network can't be
// reached.
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
		// Two IPv6 addresses may have the same MAC, because a MAC is shorter.
		c.report(n.Name, "status.addresses",
			"the tunnel's end at %s has the same MAC as that of node %s; its pods can't be reached",
			p.Address, cmp.Or(other, c.self))
		return p, false
	}
	c.macs[mac] = n.Name
	c.leastMTU, c.leastTunnelMTU = smallest(c.leastMTU, path.MTU), smallest(c.leastTunnelMTU, path.MTU)
	return p, true
}

// path returns the path to the node's address, and false if the address can't be another node's. An unknown path is
// reported and counts as a path, because an existing tunnel must stay.
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

// setMTUs sets the plan's MTUs. Without other nodes, the uplink's MTU counts. If the result is too small for pods,
// setMTUs reports that and takes the smallest MTU that pods can have.
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

// smallest returns the smaller of two sizes, where 0 is unknown.
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
