// Package bridge owns the node's Linux bridge weir0, the veth pairs that hang pods on it, what is configured inside
// the pods, and the guard that keeps a pod from sending under another's name. Everything is done over netlink.
//
// The ports are isolated: pods never meet at layer 2, so each packet between them is routed by the node and passes the
// FORWARD hook, where policy is enforced. No address is ever asked for: both ends have permanent neighbour entries and
// the bridge a static forwarding entry for each port.
package bridge

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/batch"
)

const (
	// Name of the bridge.
	Name = conf.Bridge
	// PortPrefix begins the names of the pods' links on the node, and of nothing else: the guard goes by it.
	PortPrefix = "weirp"

	defaultMTU = 1500
)

// Bridge is weir0 as it stands.
type Bridge struct {
	Index int
	MAC   net.HardwareAddr
	MTU   int
}

// Ensure makes weir0 if it isn't there, gives it the gateways' addresses and brings it up. The caller holds
// endpoint.Lock. mtu 0 means: that of the link with the default route.
//
// Equivalent to:
//
//	ip link add weir0 address MAC mtu MTU type bridge mcast_snooping 0  (see also SetReassembly and RemoveAutoconfigured)
//	sysctl net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.weir0.send_redirects=0
//	ip addr add GATEWAY/LEN dev weir0; ip link set weir0 up            (IPv4; see ensureIPv6)
//	sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
func Ensure(mtu int, gateways []netip.Prefix) (*Bridge, error) {
	if b := FindReady(mtu, gateways); b != nil {
		return b, nil
	}
	b, err := build(mtu, gateways)
	if err != nil {
		return nil, err
	}
	return b.withMTU(mtu)
}

// Find is weir0 if Ensure would have nothing to do, as nearly always; else nil. It needs no lock.
func FindReady(mtu int, gateways []netip.Prefix) *Bridge {
	b, err := readReady(gateways)
	if err == nil && b != nil {
		b, err = b.withMTU(mtu)
	}
	if err != nil { // what is wrong Ensure says
		return nil
	}
	return b
}

func (b *Bridge) withMTU(mtu int) (*Bridge, error) {
	if mtu != 0 {
		b.MTU = mtu
	}
	return b, DisableBridgeNetfilter()
}

// standing is the bridge if nothing is left to be done to it, as nearly always; else nil. One that an earlier weir made
// has a link-local address.
//
// Equivalent to: ip link show weir0 up type bridge; ip addr show dev weir0
func readReady(gateways []netip.Prefix) (*Bridge, error) {
	var look batch.Batch
	look.Add(getLink(Name), "look up %s", Name)
	look.Add(listAddresses(), "list addresses")
	replies, err := look.Do(unix.NETLINK_ROUTE, netns.None())
	if err != nil {
		return nil, err
	}
	if len(replies) == 0 {
		return nil, batch.ErrNoAnswer
	}
	link, err := netlink.LinkDeserialize(nil, replies[0])
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", Name, err)
	}
	at := link.Attrs()
	if link.Type() != "bridge" || at.Flags&net.FlagUp == 0 {
		return nil, nil
	}
	has := addressesOf(at.Index, replies[1:])
	for addr := range has {
		if addr.Addr().Is6() && addr.Addr().IsLinkLocalUnicast() {
			return nil, nil
		}
	}
	for _, gw := range gateways {
		if !has[bridgeAddress(gw)] {
			return nil, nil
		}
	}
	return &Bridge{Index: at.Index, MAC: at.HardwareAddr, MTU: at.MTU}, nil
}

// onBridge is how the bridge has a gateway's address (see ensureIPv6).
func bridgeAddress(gw netip.Prefix) netip.Prefix {
	if gw.Addr().Is6() {
		return netip.PrefixFrom(gw.Addr(), gw.Addr().BitLen())
	}
	return gw
}

// build makes what is missing of the bridge.
func build(mtu int, gateways []netip.Prefix) (*Bridge, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if link, err = create(h, mtu, MAC(gateways[0].Addr())); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", Name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s, not a bridge: remove or rename it", Name, link.Type())
	}
	// What keeps the node from what comes by the link stands before the link is up.
	if err := errors.Join(SetReassembly(), RemoveAutoconfigured(h)); err != nil {
		return nil, err
	}
	if err := ensureIPv4(h, link, ofFamily(conf.IPv4, gateways)); err != nil {
		return nil, err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set %s up: %w", Name, err)
		}
	}
	if six := ofFamily(conf.IPv6, gateways); len(six) > 0 {
		if err := ensureIPv6(h, link, six); err != nil {
			return nil, err
		}
	}
	return &Bridge{Index: link.Attrs().Index, MAC: link.Attrs().HardwareAddr, MTU: link.Attrs().MTU}, nil
}

// ensureIPv4 gives weir0 the gateways' IPv4 addresses. An address comes last, and says that all before it is done: who made
// the bridge may have been killed on the way.
func ensureIPv4(h netlinksafe.Handle, link netlink.Link, gateways []netip.Prefix) error {
	if len(gateways) == 0 {
		return nil
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", Name, err)
	}
	has := map[string]bool{}
	for _, a := range addrs {
		has[a.IPNet.String()] = true
	}
	for _, gw := range gateways {
		if has[gw.String()] {
			continue
		}
		if err := forwardIPv4(); err != nil {
			return err
		}
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(gw)}); err != nil {
			return fmt.Errorf("add gateway address %s to %s: %w", gw, Name, err)
		}
	}
	return nil
}

func forwardIPv4() error { return setAll(sysctlsIPv4()) }

func create(h netlinksafe.Handle, mtu int, mac net.HardwareAddr) (netlink.Link, error) {
	if mtu == 0 {
		var err error
		if mtu, err = underlayMTU(h); err != nil {
			return nil, err
		}
	}
	noSnooping := false
	br := &netlink.Bridge{
		// Without an address of its own a bridge takes the lowest of its ports', and the pods' permanent neighbour
		// entries for the gateway would become wrong when a port goes.
		LinkAttrs:         netlink.LinkAttrs{Name: Name, HardwareAddr: mac, MTU: mtu, TxQLen: -1},
		MulticastSnooping: &noSnooping,
	}
	if err := h.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create bridge %s: %w", Name, err)
	}
	link, err := h.LinkByName(Name)
	if err != nil {
		return nil, fmt.Errorf("look up new bridge %s: %w", Name, err)
	}
	return link, nil
}

// DisableBridgeNetfilter sees to it that pods reach a Service whose pod is on the same node: see sysctlsOfBridges.
//
//	sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
func DisableBridgeNetfilter() error { return setAll(sysctlsOfBridges()) }

// underlayMTU is the MTU of the link that the default route goes out of, IPv4's if there is one; 1500 without any.
//
// Equivalent to: ip route show default; ip -6 route show default
func underlayMTU(h netlinksafe.Handle) (int, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil {
			return 0, fmt.Errorf("find the default route: %w", err)
		}
		for _, r := range routes {
			if r.LinkIndex == 0 {
				continue
			}
			link, err := h.LinkByIndex(r.LinkIndex)
			if err != nil {
				return 0, fmt.Errorf("look up the default route's link: %w", err)
			}
			return link.Attrs().MTU, nil
		}
	}
	return defaultMTU, nil
}

// MAC is derived from the address, so it is known before the link exists and unique where the address is; of IPv6
// addresses, among those that have all but the last four bytes in common, and by all likelihood among others. The prefix
// 0a:58 (locally administered) is the one that CNI plugins have long used for this.
func MAC(addr netip.Addr) net.HardwareAddr {
	b := addr.As16()
	mac := net.HardwareAddr{0x0a, 0x58, b[12], b[13], b[14], b[15]}
	if addr.Is6() {
		h := fnv.New32a()
		_, _ = h.Write(b[:12]) // which never fails
		for i, n := range h.Sum(nil) {
			mac[2+i] ^= n
		}
	}
	return mac
}

// PodMAC is that of the pod's link: of its IPv4 address, if it has one.
func PodMAC(addrs []endpoint.Address) net.HardwareAddr {
	for _, a := range addrs {
		if a.Addr.Is4() {
			return MAC(a.Addr)
		}
	}
	return MAC(addrs[0].Addr)
}

// Gateways are the bridge's addresses for the subnets that the addresses come from.
func Gateways(addrs []endpoint.Address) []netip.Prefix {
	var gws []netip.Prefix
	for _, a := range addrs {
		gws = append(gws, netip.PrefixFrom(a.Gateway, a.Subnet.Bits()))
	}
	return gws
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }
