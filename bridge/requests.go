package bridge

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
)

// With ifNew, an existing object is an error. With orReplace it is replaced (netlink(7)).
const (
	ifNew     = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	orReplace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }

func number(kind, n int) *nl.RtAttr { return attr(kind, nl.Uint32Attr(uint32(n))) }

func request(kind, flags int, parts ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	for _, p := range parts {
		r.AddData(p)
	}
	return r
}

func ifInfo(family, index int) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(family)
	m.Index = int32(index)
	return m
}

// Equivalent to: ip link add HOSTIF mtu MTU master weir0 type veth peer name IFNAME address MAC mtu MTU netns NETNS
func (b *Bridge) newPair(p Port) *nl.NetlinkRequest {
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.IfName))
	peer.AddRtAttr(unix.IFLA_ADDRESS, p.MAC)
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(b.MTU)))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(p.Netns)))
	return request(unix.RTM_NEWLINK, ifNew, ifInfo(unix.AF_UNSPEC, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.HostIf)),
		number(unix.IFLA_MTU, b.MTU), number(unix.IFLA_MASTER, b.Index), info)
}

// Equivalent to: ip link show NAME
func getLink(name string) *nl.NetlinkRequest {
	return request(unix.RTM_GETLINK, 0, ifInfo(unix.AF_UNSPEC, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		withoutStatistics())
}

// getPeer looks the pair's other end up by the node's number for the namespace of that end.
//
// Equivalent to: ip -n NETNS link show IFNAME
func getPeer(l Link) *nl.NetlinkRequest {
	r := request(unix.RTM_GETLINK, 0, ifInfo(unix.AF_UNSPEC, l.Peer), withoutStatistics())
	if l.PeerNS >= 0 { // otherwise the other end is in the node's own namespace
		r.AddData(number(unix.IFLA_TARGET_NETNSID, l.PeerNS))
	}
	return r
}

// Equivalent to: ip link del NAME
func delLink(name string) *nl.NetlinkRequest {
	return request(unix.RTM_DELLINK, 0, ifInfo(unix.AF_UNSPEC, 0), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

// linkUp takes an index, or 0 and a name.
//
// Equivalent to: ip link set LINK up
func linkUp(index int, name string) *nl.NetlinkRequest {
	m := ifInfo(unix.AF_UNSPEC, index)
	m.Change, m.Flags = unix.IFF_UP, unix.IFF_UP
	if name == "" {
		return request(unix.RTM_SETLINK, 0, m)
	}
	return request(unix.RTM_SETLINK, 0, m, attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

// Equivalent to: ip link set LINK alias ALIAS
func setAlias(index int, alias string) *nl.NetlinkRequest {
	text := attr(unix.IFLA_IFALIAS, []byte(conf.Comment(alias)))
	return request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_UNSPEC, index), text)
}

// linkLocalMACs makes a port treat frames to the link-local MACs of IEEE 802.1D like other frames, so that they pass
// the guard. Otherwise the kernel hands them to the node's IP stack, past the hooks of the bridge family. The mask has
// one bit for each MAC. It lacks the bit for 01:80:c2:00:00:01, because the kernel refuses this bit, and drops frames
// to this MAC.
const linkLocalMACs = 0xfffd

// Equivalent to:
//
//	bridge link set dev PORT isolated on learning off flood off mcast_flood off bcast_flood off
//	ip link set PORT type bridge_slave group_fwd_mask 0xfffd
func isolate(index int) *nl.NetlinkRequest {
	flags := attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	flags.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	for _, off := range []int{
		nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_MCAST_FLOOD, nl.IFLA_BRPORT_BCAST_FLOOD,
	} {
		flags.AddRtAttr(off, []byte{0})
	}
	flags.AddRtAttr(nl.IFLA_BRPORT_GROUP_FWD_MASK, nl.Uint16Attr(linkLocalMACs))
	return request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_BRIDGE, index), flags)
}

// addForwarding returns a request that fails if the bridge already has an entry for the MAC.
//
// Equivalent to: bridge fdb add MAC dev HOSTIF master static
func addForwarding(index int, mac net.HardwareAddr) *nl.NetlinkRequest {
	return request(unix.RTM_NEWNEIGH, ifNew, &netlink.Ndmsg{
		Family: unix.AF_BRIDGE, Index: uint32(index), State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER,
	}, attr(netlink.NDA_LLADDR, mac))
}

// Equivalent to: ip neigh replace ADDR lladdr MAC dev IFNAME nud permanent
func setNeighbour(index int, addr netip.Addr, mac net.HardwareAddr) *nl.NetlinkRequest {
	return request(unix.RTM_NEWNEIGH, orReplace, &netlink.Ndmsg{
		Family: familyOf(addr), Index: uint32(index), State: netlink.NUD_PERMANENT,
	}, attr(netlink.NDA_DST, addr.AsSlice()), attr(netlink.NDA_LLADDR, mac))
}

// Equivalent to: ip neigh del ADDR dev IFNAME
func delNeighbour(index int, addr netip.Addr) *nl.NetlinkRequest {
	entry := &netlink.Ndmsg{Family: familyOf(addr), Index: uint32(index)}
	return request(unix.RTM_DELNEIGH, 0, entry, attr(netlink.NDA_DST, addr.AsSlice()))
}

// Equivalent to: ip link set LINK addrgenmode none
func noLinkLocal(index int) *nl.NetlinkRequest {
	spec := attr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
	return request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_UNSPEC, index), spec)
}

// Equivalent to: ip addr add ADDR dev IFNAME (with nodad for IPv6)
func addAddress(index int, addr netip.Addr) *nl.NetlinkRequest {
	m := nl.NewIfAddrmsg(int(familyOf(addr)))
	m.Index, m.Prefixlen = uint32(index), uint8(addr.BitLen())
	if addr.Is6() {
		m.Flags = unix.IFA_F_NODAD
	}
	return request(unix.RTM_NEWADDR, ifNew, m,
		attr(unix.IFA_LOCAL, addr.AsSlice()), attr(unix.IFA_ADDRESS, addr.AsSlice()))
}

// Equivalent to: ip addr show
func listAddresses() *nl.NetlinkRequest {
	return request(unix.RTM_GETADDR, unix.NLM_F_DUMP, nl.NewIfAddrmsg(unix.AF_UNSPEC))
}

// Equivalent to: ip -n NETNS address show, for the namespace with this number
func getAddressesIn(namespace int) *nl.NetlinkRequest {
	return request(unix.RTM_GETADDR, unix.NLM_F_DUMP, nl.NewIfAddrmsg(unix.AF_UNSPEC),
		number(unix.IFA_TARGET_NETNSID, namespace))
}

// Equivalent to: ip netns list-id nsid NUMBER
func getNamespace(namespace int) *nl.NetlinkRequest {
	return request(unix.RTM_GETNSID, unix.NLM_F_ACK, nl.NewRtGenMsg(), number(netlink.NETNSA_NSID, namespace))
}

func addressesOf(index int, replies [][]byte) map[netip.Prefix]bool {
	all := map[netip.Prefix]bool{}
	for _, r := range replies {
		if len(r) < unix.SizeofIfAddrmsg {
			continue
		}
		m := nl.DeserializeIfAddrmsg(r)
		if int(m.Index) != index {
			continue
		}
		for kind, value := range attrs.In(r[unix.SizeofIfAddrmsg:]) {
			// For IPv4, IFA_LOCAL is the interface's address. IFA_ADDRESS may be the address of the other end
			// (linux/if_addr.h).
			addr, ok := netip.AddrFromSlice(value)
			if ok && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && addr.Is6()) {
				all[netip.PrefixFrom(addr, int(m.Prefixlen))] = true
			}
		}
	}
	return all
}

// Equivalent to, without the options that r doesn't set:
//
//	ip route add DST via GATEWAY dev IFNAME mtu MTU advmss MSS metric PRIORITY table TABLE  (onlink for IPv6)
//	ip route add DST dev IFNAME scope link mtu MTU advmss MSS metric PRIORITY table TABLE   (without a gateway)
func addRoute(index int, r conf.Route) *nl.NetlinkRequest {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len = familyOf(r.Dst.Addr()), uint8(r.Dst.Bits())
	parts := []nl.NetlinkRequestData{m, attr(unix.RTA_DST, r.Dst.Addr().AsSlice()), number(unix.RTA_OIF, index)}
	if r.OnLink() {
		m.Scope = unix.RT_SCOPE_LINK
	} else {
		parts = append(parts, attr(unix.RTA_GATEWAY, r.Gateway.AsSlice()))
		if r.Gateway.Is6() {
			m.Flags |= unix.RTNH_F_ONLINK
		}
	}
	if table := r.TableID(); table > 0xff {
		m.Table = unix.RT_TABLE_UNSPEC
		parts = append(parts, number(unix.RTA_TABLE, table))
	} else if table != 0 {
		m.Table = uint8(table)
	}
	if r.Priority != 0 {
		parts = append(parts, number(unix.RTA_PRIORITY, r.Priority))
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		metrics := attr(unix.RTA_METRICS, nil)
		if r.MTU != 0 {
			metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		}
		if r.AdvMSS != 0 {
			metrics.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
		}
		parts = append(parts, metrics)
	}
	return request(unix.RTM_NEWROUTE, ifNew, parts...)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
