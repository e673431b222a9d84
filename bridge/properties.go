package bridge

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// Kind groups properties: the agent counts repairs by kind.
type Kind string

// KindGuard is the kind of the repairs of the guard and of the table weir-link-local. KindOverlay is the kind of the
// repairs that package overlay makes. No Property has one of these two kinds.
const (
	KindSysctl     Kind = "sysctl"
	KindBridge     Kind = "bridge"
	KindAddress    Kind = "address"
	KindRoute      Kind = "route"
	KindPort       Kind = "port"
	KindForwarding Kind = "forwarding"
	KindNeighbour  Kind = "neighbour"
	KindGuard      Kind = "guard"
	KindOverlay    Kind = "overlay"
)

var Kinds = []Kind{
	KindSysctl, KindBridge, KindAddress, KindRoute, KindPort, KindForwarding, KindNeighbour, KindGuard, KindOverlay,
}

// Pod is an attachment whose interface weir has made.
type Pod struct {
	HostIf    string
	MAC       net.HardwareAddr
	Addresses []endpoint.Address
	// Up means that the port should be up, because the pod is enrolled (the agent enforces policies on it).
	Up bool
}

// PodOf returns the Pod of the record. It returns false if another plugin made the interface, or if the record has no
// valid MAC.
func PodOf(e endpoint.Endpoint) (Pod, bool) {
	mac, err := net.ParseMAC(e.MAC)
	return Pod{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses}, err == nil && !e.Chained
}

// Knowledge has the facts on which the wanted node settings depend.
type Knowledge struct {
	Pods []Pod
	// MAC is the MAC that weir0 had when all properties were last right, or nil if that MAC is unknown.
	MAC net.HardwareAddr
	// Tunnels are the families whose packets between pods of different nodes need the tunnel.
	Tunnels []conf.Family
	// Memory is the size of the node's memory in bytes.
	Memory uint64
	// Filtered are the bridges of other plugins whose packets must pass through iptables.
	Filtered []string
	// NoIPv6 are links of pods behind other plugins on which the node itself speaks no IPv6 (see NeedsNoIPv6).
	NoIPv6 []Peer
}

// Properties returns the node settings of weir, in the order in which they must be made. ADD makes most of them,
// CHECK verifies them, and the agent repairs them. Package overlay has further settings.
func Properties(k Knowledge) []Property {
	all := append(reassembly(k.Memory), noAutoconfigured{}, sysctl{
		// A packet with an IP source route names further stops inside. While the packet passes FORWARD, its
		// destination is still the node, so the rules can't check where it goes next.
		Key: "net/ipv4/conf/all/accept_source_route", Value: "0", Why: "no packet chooses its own route past the policies",
	})
	for _, link := range []string{Name, conf.Tunnel} {
		all = append(all, noLinkLocalAddress{link}, sysctl{
			Key: "net/ipv6/conf/" + link + "/accept_ra", Value: "0", Link: link, IfThere: true,
			Why: link + " ignores router advertisements",
		})
	}
	for _, name := range k.Filtered {
		all = append(all, filteredBridge{name})
	}
	for _, link := range k.NoIPv6 {
		all = append(all, withoutIPv6{sysctlWithoutIPv6(link.Name), link.Index})
	}
	gateways := k.gateways()
	if len(gateways) == 0 {
		return all
	}
	four, six := len(ofFamily(conf.IPv4, gateways)) > 0, len(ofFamily(conf.IPv6, gateways)) > 0
	all = append(all, weirBridge{MACs: k.macs(gateways)})
	if four {
		all = append(all, sysctlsIPv4()...)
	}
	if six {
		// The agent switches IPv6 on. ADD doesn't: it fails if IPv6 is off.
		all = append(all, sysctl{
			Key: "net/ipv6/conf/" + Name + "/disable_ipv6", Value: "0", Link: Name, Why: "there is IPv6 on " + Name,
		})
		all = append(all, sysctlsIPv6()...)
		all = append(all, uplinksAcceptRA{})
	}
	for _, f := range k.Tunnels {
		if f == conf.IPv4 {
			all = append(all, forwardingIPv4(conf.Tunnel))
		}
	}
	all = append(all, sysctlsOfBridges()...)
	for _, gw := range gateways {
		all = append(all, gatewayAddress{gw})
		all = append(all, routesOf(gw)...)
	}
	for _, p := range k.Pods {
		all = append(all, portOnBridge{p.HostIf, p.Up}, forwardingEntry{p.HostIf, p.MAC})
		for _, a := range p.Addresses {
			all = append(all, neighbour{a.Addr, p.MAC, p.HostIf})
		}
	}
	return all
}

func (k Knowledge) gateways() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range k.Pods {
		all = append(all, Gateways(p.Addresses)...)
	}
	seen := map[netip.Prefix]bool{}
	return slices.DeleteFunc(all, func(p netip.Prefix) bool {
		again := seen[bridgeAddress(p)]
		seen[bridgeAddress(p)] = true
		return again
	})
}

// macs returns the MACs that weir0 may have: k.MAC if that is known, otherwise the MACs of all gateways. weir0 has the
// MAC of the gateway with which it was made, and this gateway may be unknown.
func (k Knowledge) macs(gateways []netip.Prefix) []net.HardwareAddr {
	var all []net.HardwareAddr
	if k.MAC != nil {
		return append(all, k.MAC)
	}
	for _, gw := range gateways {
		all = append(all, MAC(gw.Addr()))
	}
	return all
}

func sysctlsIPv4() []Property {
	const noRedirects = "the node tells no pod to speak to another directly"
	return []Property{
		sysctl{Key: "net/ipv4/ip_forward", Value: "1", Why: "the node forwards IPv4"},
		forwardingIPv4(Name),
		// Packets between pods leave by the link on which they came, so the kernel would send redirects. Pods can't
		// follow these, because ports are isolated. Redirects are off only if both sysctls are 0.
		sysctl{Key: "net/ipv4/conf/all/send_redirects", Value: "0", Why: noRedirects},
		sysctl{Key: "net/ipv4/conf/" + Name + "/send_redirects", Value: "0", Link: Name, Why: noRedirects},
	}
}

// forwardingIPv4 returns the sysctl "forwarding" of one link. ip_forward sets this sysctl for all links, but another
// program can unset it for one link.
func forwardingIPv4(link string) Property {
	return sysctl{
		Key: "net/ipv4/conf/" + link + "/forwarding", Value: "1", Link: link,
		Why: "the node forwards IPv4 that comes by " + link,
	}
}

func sysctlsIPv6() []Property {
	return []Property{
		sysctl{Key: "net/ipv6/conf/all/forwarding", Value: "1", Why: "the node forwards IPv6"},
	}
}

// sysctlsOfBridges keep packets on a bridge out of iptables. With br_netfilter, kube-proxy's rules could translate the
// address of such a packet to another pod's address. The bridge would then drop the packet, because its ports are
// isolated from each other. weir needs no br_netfilter, because the node routes all packets between pods.
func sysctlsOfBridges() []Property {
	why := "iptables doesn't check bridged frames"
	return []Property{
		sysctl{Key: "net/bridge/bridge-nf-call-iptables", Value: "0", IfThere: true, Why: why},
		sysctl{Key: "net/bridge/bridge-nf-call-ip6tables", Value: "0", IfThere: true, Why: why},
	}
}

func routesOf(gw netip.Prefix) []Property {
	address := netip.PrefixFrom(gw.Addr(), gw.Addr().BitLen())
	local := routeToBridge{
		Dst: address, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Scope: unix.RT_SCOPE_HOST, Protocol: unix.RTPROT_KERNEL, Source: gw.Addr(),
	}
	subnet := routeToBridge{
		Dst: gw.Masked(), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST,
		Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL, Source: gw.Addr(),
	}
	if gw.Addr().Is6() {
		local.Scope, local.Source = int(netlink.SCOPE_UNIVERSE), netip.Addr{}
		subnet.Scope, subnet.Protocol, subnet.Source = int(netlink.SCOPE_UNIVERSE), unix.RTPROT_BOOT, netip.Addr{}
	}
	if gw.IsSingleIP() {
		return []Property{local}
	}
	return []Property{subnet, local}
}
