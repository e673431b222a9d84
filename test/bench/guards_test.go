//go:build bench

package bench_test

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/test/nodetest"
)

// The guard is the nftables tables that check frames from pods' ports. This file has other ways to write its rules
// (layouts). docs/benchmarks.md compares these layouts with the guard. Each layout has only the rules that the
// measured packets meet, and a rule that drops all other frames.

// guardedPort is a pod's port on the bridge, with the MAC and the address from which the pod may send.
type guardedPort struct {
	name string
	mac  net.HardwareAddr
	addr netip.Addr
}

func (n *packetNode) guardedPorts() []guardedPort {
	port := func(path string, addr netip.Addr) guardedPort {
		return guardedPort{bridge.PortName(path), bridge.PodMAC([]endpoint.Address{{Addr: addr}}), addr}
	}
	return []guardedPort{port(n.client, clientAddr), port(n.server, serverAddr)}
}

const (
	// usual has the conditions of the guard's first rule, without the look-up of the sender.
	usual = "meta protocol ip meta pkttype != multicast ip daddr != 127.0.0.0/8 ip frag-off & 0x3fff == 0 "
	// unusual has the rules at the end of the guard's chain.
	unusual = "iifname != \"weirp*\" accept\n meta protocol arp accept\n counter drop"
	// netdevGroup is the interface group of the links that have an ingress chain of their own. This chain has already
	// checked a frame when the frame comes to the bridge's chain.
	netdevGroup = 77
)

// static returns a rule that accepts the port's own packets. It compares the whole Ethernet header and the source
// address with fixed values, and looks nothing up in a set.
func (p guardedPort) static() string {
	gateway := bridge.MAC(podSubnet.Addr().Next())
	return fmt.Sprintf("@ll,0,112 0x%s%s0800 ip frag-off & 0x3fff == 0 ip daddr != 127.0.0.0/8 ip saddr %s accept",
		hex.EncodeToString(gateway), hex.EncodeToString(p.mac), p.addr)
}

func inBridge(sets, rules string) string {
	return "table bridge weir {\n" + sets +
		"\nchain ports { type filter hook prerouting priority -300; policy accept;\n" + rules + "\n}\n}\n"
}

// pastTable returns the family's table weir-ports. This table drops packets that have bypassed the bridge.
func pastTable(family string) string {
	return "table " + family + " weir-ports {\nchain prerouting { type filter hook prerouting priority -450;\n" +
		"meta iifgroup 2003134834 accept\niifname \"weirp*\" counter drop\n}\n}\n"
}

// byName is the layout that the guard had until November 2026: its rule looks up the link's name, the MAC and the
// address in a set without a fixed size.
func byName(n *packetNode) string {
	set := "set senders4 { typeof iifname . ether saddr . ip saddr; elements = { "
	for _, p := range n.guardedPorts() {
		set += fmt.Sprintf("%s . %s . %s, ", p.name, p.mac, p.addr)
	}
	return inBridge(set+"} }", usual+"iifname . ether saddr . ip saddr @senders4 accept\n"+unusual) + pastTable("inet")
}

// byMap is a layout whose rule looks up the index of the link in a map. The map's entry leads to the port's own chain.
func byMap(n *packetNode) string {
	chains, leads := "", "map ports { typeof iif : verdict; size 8192; elements = { "
	for _, p := range n.guardedPorts() {
		chains += fmt.Sprintf("chain %s {\n%s\n}\n", p.name, p.static())
		leads += fmt.Sprintf("%[1]s : jump %[1]s, ", p.name)
	}
	return inBridge(chains+leads+"} }", "iif vmap @ports\n"+unusual) + pastTable("inet")
}

// atLinks has a chain at the ingress hook of each port. This chain sees all of the port's frames, so the layout needs
// no chain in the bridge. The layout has the table weir-ports only for IPv6. So the measured packets, which are IPv4,
// don't meet this table.
func atLinks(n *packetNode) string {
	all := "table netdev weir {\n"
	for _, p := range n.guardedPorts() {
		all += fmt.Sprintf("chain %[1]s { type filter hook ingress device %[1]s priority -300; policy drop;\n%[2]s\n"+
			"meta protocol arp accept\ncounter drop\n}\n", p.name, p.static())
	}
	return all + "}\n" + pastTable("ip6")
}

// atLinksAndInBridge adds a chain in the bridge to the layout atLinks. The chain checks ports that have no chain at
// their link.
func atLinksAndInBridge(n *packetNode) string {
	return atLinks(n) + inBridge("", fmt.Sprintf("iifgroup %d accept\n%s", netdevGroup, unusual)) + pastTable("inet")
}

// byLock is a layout for locked ports: the bridge itself drops each frame whose source MAC has no forwarding entry for
// the port. The bridge neither logs nor counts these frames. A chain of the table "ip weir-ports" then looks up the
// MAC and the address.
func byLock(n *packetNode) string {
	set := "set senders4 { typeof ether saddr . ip saddr; size 8192; elements = { "
	for _, p := range n.guardedPorts() {
		set += fmt.Sprintf("%s . %s, ", p.mac, p.addr)
	}
	return "table ip weir-ports {\n" + set + "} }\nchain prerouting { type filter hook prerouting priority -450;\n" +
		"meta iifgroup != 2003134834 accept\nip daddr != 127.0.0.0/8 ip frag-off & 0x3fff == 0 " +
		"ether saddr . ip saddr @senders4 accept\ncounter drop\n}\n}\n"
}

// withoutLookUp has all conditions of the guard's first rule except the look-up. So it doesn't guard anything.
func withoutLookUp(*packetNode) string {
	return inBridge("", usual+"accept\n"+unusual) + pastTable("inet")
}

const locked = "locked ports and a look-up behind the bridge"

var onOff = map[bool]string{true: "on", false: "off"}

func guards() []filter {
	guard := func(name string, rules func(*packetNode) string) filter {
		return filter{"guard, " + name, false, func(t *testing.T, n *packetNode, _ iptables.Flavour) {
			t.Helper()
			nodetest.In(t, n.path, func() error {
				for _, p := range n.guardedPorts() {
					set := exec.CommandContext(t.Context(), "ip", "link", "set", p.name, "group", fmt.Sprint(netdevGroup))
					if out, err := set.CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					lock := exec.CommandContext(t.Context(), "bridge", "link", "set", "dev", p.name, "locked", onOff[name == locked])
					if out, err := lock.CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
				}
				cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
				cmd.Stdin = strings.NewReader(rules(n))
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}}
	}
	return []filter{
		{"guard, as it is", true, func(*testing.T, *packetNode, iptables.Flavour) {}},
		guard("set by name", byName),
		guard("map by index", byMap),
		guard("chains at links", atLinks),
		guard("chains at links and a chain in the bridge", atLinksAndInBridge),
		guard(locked, byLock),
		guard("without the look-up", withoutLookUp),
	}
}
