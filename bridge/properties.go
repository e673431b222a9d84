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

// Kind of a property, by which repairs are counted.
type Kind string

// The kinds.
const (
	KindSysctl     Kind = "sysctl"
	KindBridge     Kind = "bridge"
	KindAddress    Kind = "address"
	KindRoute      Kind = "route"
	KindPort       Kind = "port"
	KindForwarding Kind = "forwarding"
	KindNeighbour  Kind = "neighbour"
	KindGuard      Kind = "guard" // RepairGuard's
	KindOverlay    Kind = "overlay"
)

// Kinds are all of them.
var Kinds = []Kind{KindSysctl, KindBridge, KindAddress, KindRoute, KindPort, KindForwarding, KindNeighbour, KindGuard, KindOverlay}

// Pod is an attachment of weir's own whose pair is made.
type Pod struct {
	HostIf    string
	MAC       net.HardwareAddr
	Addresses []endpoint.Address
	// Up says that the port should be up: the pod's policies are enforced on it.
	Up bool
}

// PodOf is what the record says of the attachment; false of one that another plugin made.
func PodOf(e endpoint.Endpoint) (Pod, bool) {
	mac, err := net.ParseMAC(e.MAC)
	return Pod{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses}, err == nil && !e.Chained
}

// Knowledge is what the properties of a node follow from.
type Knowledge struct {
	Pods []Pod
	// MAC is that which weir0 is known to have had; nil if it isn't.
	MAC net.HardwareAddr
	// Tunnels says that there is a way to other nodes' pods; nil: none.
	Tunnels []conf.Family
	// Memory is how much the node has, in bytes.
	Memory uint64
	// Filtered are the bridges of other plugins' whose packets pass iptables.
	Filtered []string
}

// Properties declares everything that weir sets up on a node outside of the packet filter, in the order in which it is
// to be made. ADD makes it, the agent keeps it so, and CHECK looks at it.
func Properties(k Knowledge) []Property {
	all := append(reassembly(k.Memory), NoAutoconfigured{})
	for _, link := range []string{Name, conf.Tunnel} {
		all = append(all, NoLinkLocal{link}, Sysctl{
			Key: "net/ipv6/conf/" + link + "/accept_ra", Value: "0", Link: link, IfThere: true,
			Why: link + " takes no router's advertisements",
		})
	}
	for _, name := range k.Filtered {
		all = append(all, FilteredBridge{name})
	}
	gateways := k.gateways()
	if len(gateways) == 0 {
		return all
	}
	four, six := len(ofFamily(conf.IPv4, gateways)) > 0, len(ofFamily(conf.IPv6, gateways)) > 0
	all = append(all, WeirBridge{MACs: k.macs(gateways)})
	if four {
		all = append(all, sysctlsIPv4()...)
	}
	if six {
		// ADD fails where IPv6 is off, and doesn't switch it on.
		all = append(all, Sysctl{Key: "net/ipv6/conf/" + Name + "/disable_ipv6", Value: "0", Link: Name, Why: "there is IPv6 on " + Name})
		all = append(all, sysctlsIPv6()...)
		all = append(all, UplinksAcceptRA{})
	}
	for _, f := range k.Tunnels {
		if f == conf.IPv4 {
			all = append(all, forwardingIPv4(conf.Tunnel))
		}
	}
	all = append(all, sysctlsOfBridges()...)
	for _, gw := range gateways {
		all = append(all, Address{gw})
		all = append(all, routesOf(gw)...)
	}
	for _, p := range k.Pods {
		all = append(all, PortOnBridge{p.HostIf, p.Up}, ForwardingEntry{p.HostIf, p.MAC})
		for _, a := range p.Addresses {
			all = append(all, Neighbour{a.Addr, p.MAC, p.HostIf})
		}
	}
	return all
}

// gateways are weir0's addresses, each once.
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

// macs are those that weir0 may have: it got its own with its first address, and of several it isn't known which was
// that. The first of them is the likeliest.
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

// sysctls4 make the node a router for pods' IPv4.
func sysctlsIPv4() []Property {
	return []Property{
		Sysctl{Key: "net/ipv4/ip_forward", Value: "1", Why: "the node forwards IPv4"},
		forwardingIPv4(Name),
		// A packet between two pods leaves by the link it came in, so the kernel would tell the sender to speak to the
		// other directly, which isolated ports don't let it. The kernel sends redirects if either of the two is on.
		Sysctl{Key: "net/ipv4/conf/all/send_redirects", Value: "0", Why: "the node tells no pod to speak to another directly"},
		Sysctl{
			Key: "net/ipv4/conf/" + Name + "/send_redirects", Value: "0", Link: Name,
			Why: "the node tells no pod to speak to another directly",
		},
	}
}

// forwards4 is set by ip_forward for all links at once, and can be unset for each.
func forwardingIPv4(link string) Property {
	return Sysctl{Key: "net/ipv4/conf/" + link + "/forwarding", Value: "1", Link: link, Why: "the node forwards IPv4 that comes by " + link}
}

// sysctls6 make the node a router for pods' IPv6. forwarding comes after the uplinks were told to go on listening
// (Listens).
func sysctlsIPv6() []Property {
	return []Property{
		Sysctl{Key: "net/ipv6/conf/all/forwarding", Value: "1", Why: "the node forwards IPv6"},
	}
}

// sysctlsOfBridges see to it that pods reach a Service whose pod is on the same node. Where br_netfilter is loaded, it
// runs iptables for what is still being bridged, unless told otherwise; and what kube-proxy's rules have sent on to
// another pod is then bridged there (br_nf_pre_routing_finish: "bridged_dnat"), which isolated ports don't allow. weir
// doesn't need it, as every packet between pods is routed, and there is no setting for one bridge that says no.
func sysctlsOfBridges() []Property {
	why := "iptables leaves alone what is still being bridged"
	return []Property{
		Sysctl{Key: "net/bridge/bridge-nf-call-iptables", Value: "0", IfThere: true, Why: why},
		Sysctl{Key: "net/bridge/bridge-nf-call-ip6tables", Value: "0", IfThere: true, Why: why},
	}
}

// routesOf are those that lead to weir0 for one of its addresses. The kernel makes those of IPv4 with the address, and
// all can be taken away alone.
func routesOf(gw netip.Prefix) []Property {
	address := netip.PrefixFrom(gw.Addr(), gw.Addr().BitLen())
	local := Route{
		Dst: address, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Scope: unix.RT_SCOPE_HOST, Protocol: unix.RTPROT_KERNEL, Source: gw.Addr(),
	}
	subnet := Route{
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
