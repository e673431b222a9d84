// Package bridge connects pods to the node. It owns:
//
//   - the Linux bridge weir0 with its addresses and routes
//   - a veth pair for each pod: one end, weirp..., is a port of weir0, the other is the pod's interface
//   - the addresses, routes and neighbour entries of that interface
//   - the guard: nftables tables that keep a pod from sending from another pod's addresses
//   - the nftables table for link-local addresses of pods on other plugins' bridges
//   - the sysctls that all of these need
//
// It makes, checks and repairs all of these over netlink. Only for sysctls it uses files below /proc/sys.
//
// Invariants:
//   - The ports are isolated, so pods exchange no frames through the bridge. The node routes each packet between pods,
//     and the packet passes the FORWARD hook, where policy is enforced.
//   - Nothing is resolved or learned: neighbour entries are permanent, and the bridge has a static forwarding entry for
//     each port.
//   - A new port's link stays down until Pair.Start, SetLinkUp, or a repair with Pod.Up sets it up.
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
	// Name is weir0, the bridge of all pods whose interfaces weir made.
	Name = conf.Bridge
	// PortPrefix begins the names of the pods' links on the node. No other link's name may begin so, because the guard
	// treats every link with this prefix as a pod's link.
	PortPrefix = "weirp"

	// bridgeGroup is the number of weir0's link group: the letters "weir" as bytes. The guard recognizes weir0 by this
	// group, because no other link is in it.
	bridgeGroup = 0x77656972

	defaultMTU = 1500
)

// Bridge is weir0. MTU is the MTU of new veth pairs: the requested MTU, or the MTU of weir0 if none was requested.
type Bridge struct {
	Index int
	MAC   net.HardwareAddr
	MTU   int
}

// Ensure returns weir0. It makes the bridge, its addresses and its sysctls, as far as they are missing. With mtu 0, a
// new bridge gets the MTU of the link with the default route. The caller must have endpoint.Lock.
//
// Equivalent to:
//
//	ip link add weir0 address MAC mtu MTU group 2003134834 type bridge mcast_snooping 0
//	(see also SetReassembly, RemoveAutoconfigured)
//	sysctl net.ipv4.ip_forward=1 net.ipv4.conf.weir0.forwarding=1       (IPv4; see ensureIPv6)
//	sysctl net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.weir0.send_redirects=0
//	ip addr add GATEWAY/LEN dev weir0; ip link set weir0 up             (IPv4; see ensureIPv6)
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

// FindReady returns weir0 if it is complete, and otherwise nil. If weir0 is complete, FindReady also calls
// disableBridgeNetfilter. After an error it returns nil: the caller then calls Ensure, and Ensure reports the error.
// FindReady needs no lock.
func FindReady(mtu int, gateways []netip.Prefix) *Bridge {
	b, err := readReady(gateways)
	if err == nil && b != nil {
		b, err = b.withMTU(mtu)
	}
	if err != nil {
		return nil
	}
	return b
}

func (b *Bridge) withMTU(mtu int) (*Bridge, error) {
	if mtu != 0 {
		b.MTU = mtu
	}
	return b, disableBridgeNetfilter()
}

// readReady returns weir0, or nil if weir0 is incomplete. weir0 also counts as incomplete if it has a link-local
// address. Earlier versions of weir left such an address there.
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
	if link.Type() != "bridge" || at.Flags&net.FlagUp == 0 || at.Group != bridgeGroup {
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

func bridgeAddress(gw netip.Prefix) netip.Prefix {
	if gw.Addr().Is6() {
		return netip.PrefixFrom(gw.Addr(), gw.Addr().BitLen())
	}
	return gw
}

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
	if link.Attrs().Group != bridgeGroup { // an earlier version of weir has made weir0
		if err := h.LinkSetGroup(link, bridgeGroup); err != nil {
			return nil, fmt.Errorf("set the group of %s: %w", Name, err)
		}
	}
	// Once the link is up, frames of pods reach the node. Before that, the node needs limits for fragments, and weir0
	// must have no autoconfigured addresses and routes.
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

// ensureIPv4 sets the sysctls before it adds an address. If the process is killed in between, the missing address
// shows that work is left.
func ensureIPv4(h netlinksafe.Handle, link netlink.Link, gateways []netip.Prefix) error {
	if len(gateways) == 0 {
		return nil
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", Name, err)
	}
	for _, gw := range gateways {
		if hasAddress(addrs, ipNet(gw)) {
			continue
		}
		if err := setAll(sysctlsIPv4()); err != nil {
			return err
		}
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(gw)}); err != nil {
			return fmt.Errorf("add gateway address %s to %s: %w", gw, Name, err)
		}
	}
	return nil
}

func create(h netlinksafe.Handle, mtu int, mac net.HardwareAddr) (netlink.Link, error) {
	if mtu == 0 {
		var err error
		if mtu, err = underlayMTU(h); err != nil {
			return nil, err
		}
	}
	noSnooping := false
	br := &netlink.Bridge{
		// Without a MAC of its own, a bridge uses the lowest MAC of its ports. When that port is removed, the MAC
		// changes, and the pods' permanent neighbour entries are wrong.
		LinkAttrs:         netlink.LinkAttrs{Name: Name, HardwareAddr: mac, MTU: mtu, TxQLen: -1, Group: bridgeGroup},
		MulticastSnooping: &noSnooping,
	}
	if err := h.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, WithModule("bridge", fmt.Errorf("create bridge %s: %w", Name, err))
	}
	link, err := h.LinkByName(Name)
	if err != nil {
		return nil, fmt.Errorf("look up new bridge %s: %w", Name, err)
	}
	return link, nil
}

// WithModule adds a hint to the error if the kernel couldn't make a link because it lacks this module.
func WithModule(module string, err error) error {
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return fmt.Errorf("%w: the kernel can't load its module %s (modprobe %s); if the package of the running kernel was "+
		"replaced or removed, reboot the node", err, module, module)
}

// disableBridgeNetfilter keeps frames on bridges out of iptables. Otherwise pods can't reach a Service with a pod on
// the same node (see sysctlsOfBridges).
//
// Equivalent to: sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
func disableBridgeNetfilter() error { return setAll(sysctlsOfBridges()) }

// underlayMTU returns the MTU of the link with the IPv4 default route. Without such a route it takes the link with the
// IPv6 default route. Without any default route it returns 1500.
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

// MAC returns the MAC of the pod or gateway with this address. It is computed from the address. Different IPv4
// addresses have different MACs. Two IPv6 addresses very rarely have the same MAC.
func MAC(addr netip.Addr) net.HardwareAddr {
	b := addr.As16()
	mac := net.HardwareAddr{0x0a, 0x58, b[12], b[13], b[14], b[15]}
	if addr.Is6() {
		h := fnv.New32a()
		_, _ = h.Write(b[:12]) // writing to a hash never fails
		for i, n := range h.Sum(nil) {
			mac[2+i] ^= n
		}
	}
	return mac
}

// PodMAC returns the MAC for the pod's IPv4 address. If the pod has no IPv4 address, PodMAC returns the MAC for the
// pod's first address.
func PodMAC(addrs []endpoint.Address) net.HardwareAddr {
	for _, a := range addrs {
		if a.Addr.Is4() {
			return MAC(a.Addr)
		}
	}
	return MAC(addrs[0].Addr)
}

// Gateways returns the gateway of each address, with the prefix length of the subnet. The result may have duplicates.
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
