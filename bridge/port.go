package bridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// ErrInterfaceExists says that the pod's namespace already has an interface of the wanted name.
var ErrInterfaceExists = errors.New("the interface exists already")

// ErrMACInUse says that another port, or the bridge, has the MAC: what is for one would go to the other.
var ErrMACInUse = errors.New("another on the bridge has this MAC")

// PortName is the name of an attachment's link on the node: 15 characters, the most that the kernel takes, of which 10
// come from a hash of the attachment's ID.
func PortName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return PortPrefix + hex.EncodeToString(sum[:])[:10]
}

// Port is a veth pair to be made: one end on the bridge, one in the pod.
type Port struct {
	HostIf    string
	IfName    string // in the pod
	Netns     netns.NsHandle
	MAC       net.HardwareAddr // of the pod's end
	Addresses []endpoint.Address
	Routes    []conf.Route // that the pod gets besides the default routes, or in their place
	Alias     string       // says on the node whose link it is
}

// Sender is who the port may send as.
func (p Port) Sender() Sender { return Sender{p.HostIf, p.MAC, p.Addresses} }

// Add makes the pair with its end on the node down, so that no packet passes yet: Open lets them. What it made is
// taken away again if it fails.
//
// Equivalent to:
//
//	ip link add HOSTIF mtu MTU type veth peer name IFNAME address MAC mtu MTU netns NETNS
//	ip link set HOSTIF master weir0
//	bridge link set dev HOSTIF isolated on learning off flood off mcast_flood off bcast_flood off
//	bridge fdb add MAC dev HOSTIF master static
//	ip neigh replace ADDR lladdr MAC dev weir0 nud permanent
//
// and in the pod:
//
//	ip link set lo up; ip addr add ADDR/32 dev IFNAME; ip link set IFNAME up
//	ip neigh replace GATEWAY lladdr BRIDGEMAC dev IFNAME nud permanent
//	ip route add GATEWAY dev IFNAME scope link; ip route add default via GATEWAY dev IFNAME; and the other routes
//
// of an IPv6 address:
//
//	ip link set IFNAME addrgenmode none; ip addr add ADDR/128 dev IFNAME nodad; ip link set IFNAME up
//	ip neigh replace GATEWAY lladdr BRIDGEMAC dev IFNAME nud permanent
//	ip -6 route add default via GATEWAY dev IFNAME onlink
func (b *Bridge) Add(h netlinksafe.Handle, p Port) (err error) {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: p.HostIf, MTU: b.MTU, TxQLen: -1})
	veth.PeerName = p.IfName
	veth.PeerHardwareAddr = p.MAC
	veth.PeerMTU = uint32(b.MTU)
	veth.PeerNamespace = netlink.NsFd(int(p.Netns))

	pod, err := netlinksafe.NewHandleAt(p.Netns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod's namespace: %w", err)
	}
	defer pod.Close()

	if err := h.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("create veth pair %s, %s in the pod: %w", p.HostIf, p.IfName, ErrInterfaceExists)
		}
		return fmt.Errorf("create veth pair %s, %s in the pod: %w", p.HostIf, p.IfName, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(h, p.HostIf, p.Addresses))
		}
	}()
	if err := b.configurePort(h, veth.Index, p); err != nil {
		return err
	}
	return b.configurePod(pod, p)
}

func (b *Bridge) configurePort(h netlinksafe.Handle, index int, p Port) error {
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.HostIf, Index: index}}
	if err := h.LinkSetMasterByIndex(port, b.Index); err != nil {
		return fmt.Errorf("put %s on %s: %w", p.HostIf, Name, err)
	}
	if err := isolate(index); err != nil {
		return fmt.Errorf("isolate port %s: %w", p.HostIf, err)
	}
	if err := h.LinkSetAlias(port, p.Alias); err != nil {
		return fmt.Errorf("name %s's pod in its alias: %w", p.HostIf, err)
	}
	fdb := &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: p.MAC,
	}
	err := h.NeighAdd(fdb)
	if bytes.Equal(p.MAC, b.MAC) || errors.Is(err, unix.EEXIST) {
		err = ErrMACInUse
	}
	if err != nil {
		return fmt.Errorf("add forwarding entry %s to %s: %w", p.MAC, p.HostIf, err)
	}
	for _, a := range p.Addresses {
		if err := h.NeighSet(neighbour(b.Index, a.Addr, p.MAC)); err != nil {
			return fmt.Errorf("add neighbour %s to %s: %w", a.Addr, Name, err)
		}
	}
	return nil
}

func (b *Bridge) configurePod(pod netlinksafe.Handle, p Port) error {
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}} // the loopback's index is 1 in every namespace
	if err := pod.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up in the pod: %w", err)
	}
	link, err := pod.LinkByName(p.IfName)
	if err != nil {
		return fmt.Errorf("look up %s in the pod: %w", p.IfName, err)
	}
	for _, a := range p.Addresses {
		if a.Addr.Is6() {
			if err := addIPv6(pod, link, a); err != nil {
				return err
			}
		} else if err := pod.AddrAdd(link, &netlink.Addr{IPNet: host(a.Addr)}); err != nil {
			return fmt.Errorf("add address %s to %s in the pod: %w", a.Addr, p.IfName, err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up in the pod: %w", p.IfName, err)
	}
	index := link.Attrs().Index
	for _, a := range p.Addresses {
		if err := pod.NeighSet(neighbour(index, a.Gateway, b.MAC)); err != nil {
			return fmt.Errorf("add the gateway %s as neighbour in the pod: %w", a.Gateway, err)
		}
		if a.Addr.Is4() {
			if err := pod.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host(a.Gateway)}); err != nil {
				return fmt.Errorf("add the route to gateway %s in the pod: %w", a.Gateway, err)
			}
		}
		for _, r := range conf.RoutesOf(p.Routes, conf.FamilyOf(a.Addr), a.Gateway) {
			if err := pod.RouteAdd(route(index, r)); err != nil {
				return fmt.Errorf("add the route to %s via %s in the pod: %w", r.Dst, a.Gateway, err)
			}
		}
	}
	return nil
}

// Open brings the link's end on the node up: from here packets pass.
//
// Equivalent to: ip link set HOSTIF up
func Open(h netlinksafe.Handle, hostIf string) error {
	link, err := h.LinkByName(hostIf)
	if err != nil {
		return fmt.Errorf("look up %s: %w", hostIf, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", hostIf, err)
	}
	return nil
}

// Remove deletes the pair, and the node's neighbour entries for the addresses. What is gone already is no error.
//
// Equivalent to: ip link del HOSTIF; ip neigh del ADDR dev weir0
func Remove(h netlinksafe.Handle, hostIf string, addrs []endpoint.Address) error {
	link, err := h.LinkByName(hostIf)
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", hostIf, err)
	}
	return RemoveNeighbours(h, addrs)
}

// RemoveNeighbours is what Remove does for the addresses.
//
// Equivalent to: ip neigh del ADDR dev weir0
func RemoveNeighbours(h netlinksafe.Handle, addrs []endpoint.Address) error {
	if len(addrs) == 0 {
		return nil
	}
	br, err := h.LinkByName(Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", Name, err)
	}
	for _, a := range addrs {
		err := h.NeighDel(neighbour(br.Attrs().Index, a.Addr, nil))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete neighbour %s of %s: %w", a.Addr, Name, err)
		}
	}
	return nil
}

// RemoveAll deletes the pairs of all pods, and then the bridge. A pair that outlived the bridge would still lead from its
// pod to the node.
//
// Equivalent to: for link in $(ls -d /sys/class/net/weirp* /sys/class/net/weir0); do ip link del ${link##*/}; done
func RemoveAll(h netlinksafe.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, PortPrefix) {
			if err := Remove(h, name, nil); err != nil {
				return err
			}
		}
	}
	return Remove(h, Name, nil)
}

func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
}

// isolate sets all of the port's flags in one message.
func isolate(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	flags := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, value := range map[int]byte{
		nl.IFLA_BRPORT_ISOLATED: 1, nl.IFLA_BRPORT_LEARNING: 0, nl.IFLA_BRPORT_UNICAST_FLOOD: 0,
		nl.IFLA_BRPORT_MCAST_FLOOD: 0, nl.IFLA_BRPORT_BCAST_FLOOD: 0,
	} {
		flags.AddRtAttr(attr, []byte{value})
	}
	req.AddData(flags)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
