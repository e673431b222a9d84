// Package packettest sends real packets between pods, many at a time, and returns which packets have arrived. Each pod
// is a network namespace, on weir's bridge or behind another plugin's link. A backend writes the rules and sets. No
// plugin, agent or API server runs.
package packettest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// Node is a node with pods, and with hosts outside of the cluster. Only tests in which nodetest.Isolated returned true
// may use it.
type Node struct {
	testing.TB
	Backend
	Writer Name // Writer is the name of Backend.
	// Bounds limit how many sets Enforce writes: beyond them, sets are merged.
	Bounds   ruleset.Bounds
	Ports    []uint16
	outside  string
	bridge   *bridge.Bridge
	networks map[conf.Family]endpoint.Address // subnet and gateway of each family; Addr is not set
	hosts    map[netip.Addr]*host
	bridged  map[string][]neighbour // the key is the name of another plugin's bridge
	last     uint32                 // the number of the last packet that was sent
}

// NewNode makes a node. networks has the subnets and gateways of its pods, at most one of each family. Each host
// answers on the given ports.
func NewNode(t testing.TB, networks []endpoint.Address, ports ...uint16) *Node {
	t.Helper()
	n := &Node{
		TB:       t,
		Backend:  open(t, IptablesNFT),
		Writer:   IptablesNFT,
		Bounds:   ruleset.UsualBounds(),
		Ports:    ports,
		outside:  nodetest.Outside(t),
		networks: map[conf.Family]endpoint.Address{},
		hosts:    map[netip.Addr]*host{},
		bridged:  map[string][]neighbour{},
	}
	t.Cleanup(func() { n.Close() })
	var err error
	if n.bridge, err = bridge.Ensure(0, bridge.Gateways(networks)); err != nil {
		t.Fatal(err)
	}
	for _, network := range networks {
		f := conf.FamilyOf(network.Gateway)
		n.networks[f] = network
		node := map[conf.Family]string{conf.IPv4: "192.0.2.2", conf.IPv6: "2001:db8::2"}[f]
		nodetest.Run(t, "ip", "-n", "outside", "route", "add", network.Subnet.String(), "via", node)
	}
	return n
}

func (n *Node) addresses(addrs []netip.Addr) []endpoint.Address {
	var all []endpoint.Address
	for _, a := range addrs {
		address := n.networks[conf.FamilyOf(a)]
		address.Addr = a
		all = append(all, address)
	}
	return all
}

// AddPod attaches a pod with one or two addresses to weir's bridge, and starts servers on the addresses.
func (n *Node) AddPod(name string, addrs ...netip.Addr) {
	n.Helper()
	path := nodetest.NewNS(n, name)
	handle, err := netns.GetFromPath(path)
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = handle.Close() }()
	addresses := n.addresses(addrs)
	port := bridge.Port{
		HostIf:    bridge.PortName(name),
		IfName:    "eth0",
		Netns:     handle,
		MAC:       bridge.PodMAC(addresses),
		Alias:     name,
		Addresses: addresses,
	}
	pair, err := n.bridge.AddPort(port)
	if err != nil {
		n.Fatal(err)
	}
	if err := pair.Start(); err != nil {
		n.Fatal(err)
	}
	for _, addr := range addrs {
		n.addHost(path, addr)
	}
}

// AddChainedPod attaches a pod as another plugin would, by a veth pair. hostIf is the pair's end on the node. If
// bridgeIf is empty, the node routes the pod's addresses to hostIf, as the plugin ptp does. Otherwise hostIf becomes a
// port of the bridge bridgeIf.
func (n *Node) AddChainedPod(bridgeIf, hostIf, name string, addrs ...netip.Addr) {
	n.Helper()
	path := nodetest.NewNS(n, name)
	mac := bridge.PodMAC(n.addresses(addrs)).String()
	run := func(command string, args ...any) {
		n.Helper()
		f := strings.Fields(fmt.Sprintf(command, args...))
		nodetest.Run(n, f[0], f[1:]...)
	}
	run("ip link add %s type veth peer name eth0 address %s netns %s", hostIf, mac, name)
	onNode, sees := hostIf, hostIf
	if bridgeIf != "" {
		if _, err := net.InterfaceByName(bridgeIf); err != nil {
			run("ip link add %s address 02:00:00:00:01:00 type bridge nf_call_iptables 1 nf_call_ip6tables 1", bridgeIf)
			run("ip link set %s up", bridgeIf)
		}
		run("ip link set %s master %s", hostIf, bridgeIf)
		onNode, sees = bridgeIf, bridgeIf
	}
	run("ip link set %s up", hostIf)
	run("ip -n %s link set lo up", name)
	run("ip -n %s link set eth0 up", name)
	link, err := net.InterfaceByName(sees)
	if err != nil {
		n.Fatal(err)
	}
	for _, addr := range addrs {
		gateway := n.networks[conf.FamilyOf(addr)].Gateway
		nodad := map[conf.Family]string{conf.IPv6: "nodad"}[conf.FamilyOf(addr)]
		run("ip -n %s addr add %s dev eth0 %s", name, addr, nodad)
		run("ip -n %s neigh add %s lladdr %s dev eth0 nud permanent", name, gateway, link.HardwareAddr)
		run("ip -n %s route add %s dev eth0", name, gateway)
		run("ip -n %s route add default via %s dev eth0 src %s", name, gateway, addr)
		run("ip route add %s dev %s", addr, onNode)
		run("ip neigh replace %s lladdr %s dev %s nud permanent", addr, mac, onNode)
		for _, other := range n.bridged[bridgeIf] {
			if bridgeIf == "" || conf.FamilyOf(other.addr) != conf.FamilyOf(addr) {
				continue
			}
			for _, pair := range [][2]neighbour{{{name, mac, addr}, other}, {other, {name, mac, addr}}} {
				run("ip -n %s route add %s dev eth0", pair[0].netns, pair[1].addr)
				run("ip -n %s neigh add %s lladdr %s dev eth0 nud permanent", pair[0].netns, pair[1].addr, pair[1].mac)
			}
		}
	}
	// A new link drops packets until the kernel's link watch has run. A new port of a bridge drops packets even longer.
	ready := fmt.Sprintf("until ip link show %s | grep -q 'state UP' && ip -n %s link show eth0 | grep -q 'state UP'; "+
		"do sleep 0.01; done", hostIf, name)
	if bridgeIf != "" {
		ready += fmt.Sprintf("; until bridge link show dev %s | grep -q 'state forwarding'; do sleep 0.01; done", hostIf)
	}
	nodetest.Run(n, "timeout", "60", "sh", "-c", ready)
	for _, addr := range addrs {
		n.bridged[bridgeIf] = append(n.bridged[bridgeIf], neighbour{name, mac, addr})
		n.addHost(path, addr)
	}
}

type neighbour struct {
	netns, mac string
	addr       netip.Addr
}

// DelPod detaches a pod that AddPod attached with the same addresses.
func (n *Node) DelPod(name string, addrs ...netip.Addr) {
	n.Helper()
	for _, addr := range addrs {
		n.hosts[addr].close()
		delete(n.hosts, addr)
	}
	if err := bridge.RemovePort(bridge.PortName(name), n.addresses(addrs)); err != nil {
		n.Fatal(err)
	}
	nodetest.DelNS(n, "/run/netns/"+name)
}

// AddOutside gives the host outside of the node one more address, such as the address of a pod on another node.
func (n *Node) AddOutside(addr netip.Addr) {
	n.Helper()
	args := []string{"-n", "outside", "addr", "replace", addr.String(), "dev", "lo"}
	if addr.Is6() {
		args = append(args, "nodad") // without duplicate address detection, so the address can be used at once
	}
	nodetest.Run(n, "ip", args...)
	n.addHost(n.outside, addr)
}

// AddSelf makes the node itself a host to which pods can send. The node must already have the address.
func (n *Node) AddSelf(addr netip.Addr) {
	n.Helper()
	n.addHost(nodetest.Self, addr)
}

// Hosts returns the sorted addresses of all hosts between which packets can be sent.
func (n *Node) Hosts() []netip.Addr {
	var all []netip.Addr
	for a := range n.hosts {
		all = append(all, a)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// Ruleset returns the ruleset that Enforce would write for the state.
func (n *Node) Ruleset(s policy.State) ruleset.Ruleset { return n.Bounds.Merge(policy.Compile(s), nil) }

// Enforce writes the state's rules and sets to the kernel. It also forgets all connections, so that each packet is the
// first of a connection.
func (n *Node) Enforce(s policy.State) {
	n.Helper()
	if _, err := n.Apply(n.Context(), n.Ruleset(s), netfilter.Trust); err != nil {
		n.Fatal(err)
	}
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		n.Fatal(err)
	}
}
