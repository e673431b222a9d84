package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/batch"
)

// ErrBypassesForward means that a pod's packets bypass the FORWARD hook, so no policy can be enforced on them.
var ErrBypassesForward = errors.New("policy can't be enforced on its packets")

// Peer is the node's end of an interface that another plugin made.
type Peer struct {
	Name   string
	Index  int
	Bridge string // the bridge that has the link as a port; empty if the node routes the pod's packets
}

// FindPeer finds the node's end of an interface that another plugin made. It returns ErrBypassesForward if the
// interface isn't one end of a veth pair whose other end is on the node. It also returns this error if the end on the
// node is a port of a device that is neither a bridge nor a VRF (a bond, for example).
//
// Equivalent to: ip -n NETNS -d link show IFNAME; ip -d link show PEER
func FindPeer(h netlinksafe.Handle, ns netns.NsHandle, ifName string) (Peer, error) {
	pod, err := netlinksafe.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return Peer{}, fmt.Errorf("open netlink in the pod's namespace: %w", err)
	}
	defer pod.Close()
	inside, err := pod.LinkByName(ifName)
	if err != nil {
		return Peer{}, fmt.Errorf("look up %s in the pod: %w", ifName, err)
	}
	if inside.Type() != "veth" {
		return Peer{}, fmt.Errorf("%s in the pod is of type %s, not a veth that ends on the node: %w",
			ifName, inside.Type(), ErrBypassesForward)
	}
	peer, missing := h.LinkByIndex(inside.Attrs().ParentIndex)
	if missing != nil && !errors.As(missing, &netlink.LinkNotFoundError{}) {
		return Peer{}, fmt.Errorf("look up the peer of %s: %w", ifName, missing)
	}
	// Look up the namespace's number after the link: the kernel gives a namespace its number when it first describes a
	// link that leads there.
	id, err := h.GetNetNsIdByFd(int(ns))
	if err != nil {
		return Peer{}, fmt.Errorf("look up the pod's namespace: %w", err)
	}
	if missing != nil || id < 0 || peer.Type() != "veth" || peer.Attrs().NetNsID != id ||
		peer.Attrs().ParentIndex != inside.Attrs().Index {
		return Peer{}, fmt.Errorf("%s in the pod is a veth that doesn't end on the node: %w", ifName, ErrBypassesForward)
	}
	found := Peer{Name: peer.Attrs().Name, Index: peer.Attrs().Index}
	if peer.Attrs().MasterIndex == 0 {
		return found, nil
	}
	master, err := h.LinkByIndex(peer.Attrs().MasterIndex)
	if err != nil {
		return Peer{}, fmt.Errorf("look up the master of %s: %w", peer.Attrs().Name, err)
	}
	switch master.Type() {
	case "bridge":
		found.Bridge = master.Attrs().Name
		return found, nil
	case "vrf": // a VRF routes packets, so they pass FORWARD
		return found, nil
	}
	return Peer{}, fmt.Errorf("%s belongs to %s, a %s: %w",
		peer.Attrs().Name, master.Attrs().Name, master.Type(), ErrBypassesForward)
}

// ShutPeer sets the node's end of a pod's interface down. Another plugin made the interface. ShutPeer returns nil if
// the link is gone. It finds the link by its index. If the link has another name than hostIf, the link counts as gone
// unless it leads to one of the addresses addrs (see peerLink). If the index is unknown (0), ShutPeer looks the link up
// by its name, and sets it down only if its other end is in the namespace netnsPath. In the agent's container this path
// doesn't exist, so a link with an unknown index stays up there.
//
// Equivalent to: ip link set HOSTIF down
func ShutPeer(hostIf string, index int, netnsPath string, addrs []endpoint.Address) error {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := peerLink(h, hostIf, index, addrs)
	if link == nil || err != nil {
		return err
	}
	same := true
	if index == 0 {
		if same, err = leadsTo(h, link, netnsPath); err != nil {
			return err
		}
	}
	if !same || link.Attrs().Flags&net.FlagUp == 0 {
		return nil
	}
	if err := h.LinkSetDown(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set link %s down: %w", link.Attrs().Name, err)
	}
	return nil
}

// ShutPeersOf sets down all links that lead to these addresses, except weir's own links. It is for pods whose links
// aren't known.
func ShutPeersOf(addrs []endpoint.Address) error {
	if len(addrs) == 0 {
		return nil
	}
	all, err := PodAddresses()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		for _, p := range all[a.Addr] {
			if strings.HasPrefix(p.Name, PortPrefix) {
				continue
			}
			if err := ShutPeer(p.Name, p.Index, "", addrs); err != nil {
				return err
			}
		}
	}
	return nil
}

// PeerExists reports whether the node has the link that another plugin made for a pod. The kernel deletes the link
// together with the pod's network namespace. index is the link's index, or 0 if the index isn't known. addrs are the
// pod's addresses: if another program has renamed the link, they show that the link with this index is still the
// pod's.
func PeerExists(hostIf string, index int, addrs []endpoint.Address) (bool, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := peerLink(h, hostIf, index, addrs)
	return link != nil, err
}

// peerLink finds the link by its index, because another program may have renamed the link. If the index is 0, peerLink
// finds the link by its name. It returns nil if the link is gone.
//
// If the link with this index has another name than hostIf, and the interface at its other end has none of the
// addresses, peerLink also returns nil. Such a link belongs to a later pod: a link that moves to the node from
// another network namespace keeps its index if the node has no such index.
func peerLink(h netlinksafe.Handle, hostIf string, index int, addrs []endpoint.Address) (link netlink.Link, err error) {
	if index == 0 {
		link, err = h.LinkByName(hostIf)
	} else {
		link, err = h.LinkByIndex(index)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || err == nil && link.Type() != "veth" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", hostIf, err)
	}
	if index == 0 || link.Attrs().Name == hostIf {
		return link, nil
	}
	all, err := PodAddresses()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if slices.ContainsFunc(all[a.Addr], func(p Peer) bool { return p.Index == index }) {
			return link, nil
		}
	}
	return nil, nil
}

// leadsTo reports whether the link's other end is in the network namespace. It returns false if the namespace is gone.
func leadsTo(h netlinksafe.Handle, link netlink.Link, netnsPath string) (bool, error) {
	ns, err := netns.GetFromPath(netnsPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the pod's namespace %s: %w", netnsPath, err)
	}
	defer func() { _ = ns.Close() }()
	id, err := h.GetNetNsIdByFd(int(ns))
	if errors.Is(err, unix.EINVAL) { // the namespace is gone, and only its file is left
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up the pod's namespace %s: %w", netnsPath, err)
	}
	return id >= 0 && link.Attrs().NetNsID == id, nil
}

// EnableBridgeNetfilter makes packets between the ports of another plugin's bridge pass through iptables. It sets the
// options of this one bridge, because the sysctl net.bridge.bridge-nf-call-iptables would also apply to weir0. Without
// the module br_netfilter, it returns ErrBypassesForward.
//
// Equivalent to: ip link set BRIDGE type bridge nf_call_iptables 1 nf_call_ip6tables 1
func EnableBridgeNetfilter(h netlinksafe.Handle, name string) error {
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bridge %s passes packets between pods on without the node's FORWARD hook, "+
			"as br_netfilter isn't loaded (modprobe br_netfilter): %w", name, ErrBypassesForward)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", name, err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, []byte{1})
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, []byte{1})
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("make packets of bridge %s pass through iptables (nf_call_iptables): %w", name, err)
	}
	return nil
}

// NetfilterEnabled reports whether the bridge has both options that EnableBridgeNetfilter sets.
//
// Equivalent to: ip -d link show BRIDGE | grep 'nf_call_iptables 1 nf_call_ip6tables 1'
func NetfilterEnabled(name string) (bool, error) {
	var look batch.Batch
	look.Add(getLink(name), "look up bridge %s", name)
	replies, err := look.Do(unix.NETLINK_ROUTE, netns.None())
	if err != nil {
		return false, err
	}
	l, err := linkIn(replies)
	if err != nil {
		return false, fmt.Errorf("look up bridge %s: %w", name, err)
	}
	return l.filtered(), nil
}

// filtered reports whether the bridge has the options that make packets between its ports pass through iptables.
// These options have no effect unless the module br_netfilter is loaded.
func (l Link) filtered() bool {
	return l.Bridge[nl.IFLA_BR_NF_CALL_IPTABLES] == 1 && l.Bridge[nl.IFLA_BR_NF_CALL_IP6TABLES] == 1
}

// NeedsNoIPv6 reports whether the node itself needs no IPv6 on the link that another plugin made for a pod. There are
// two such cases. In both, IPv6 packets that the node accepts from the link may bypass policy:
//
//   - The link is a bridge's port. Frames to link-local MACs of IEEE 802.1D reach the node's IP stack from the port,
//     past the hooks of the bridge. All other frames reach the node from the bridge.
//   - The pod has no IPv6 address. It can still send to the link-local address that the kernel gives the link. The node
//     has rules for IPv6 only if one of its pods has an IPv6 address.
func NeedsNoIPv6(e endpoint.Endpoint) bool {
	six := func(a endpoint.Address) bool { return a.Addr.Is6() }
	return e.Chained && e.HostIf != "" && (e.BridgeIf != "" || !slices.ContainsFunc(e.Addresses, six))
}

func sysctlWithoutIPv6(link string) sysctl {
	return sysctl{
		Key: "net/ipv6/conf/" + link + "/disable_ipv6", Value: "1", Link: link, IfThere: true,
		Why: "the node itself speaks no IPv6 on " + link + ", the link of a pod behind another plugin",
	}
}

// withoutIPv6 is the property that the node itself speaks no IPv6 on the link with this name and index. A later pod's
// link may have the same name, so a link with another index isn't checked. Index is 0 if the index isn't known.
type withoutIPv6 struct {
	sysctl
	Index int
}

func (p withoutIPv6) Check(o *Observed) error {
	if l, _, err := o.link(p.Link); err == nil && p.Index != 0 && l.Index != p.Index {
		return nil
	}
	return p.sysctl.Check(o)
}

// DisableIPv6 makes the node drop all IPv6 packets that reach its own IP stack from the link. Packets that a bridge
// receives on the link and forwards aren't affected. Without IPv6 in the kernel, DisableIPv6 does nothing.
//
// Equivalent to: sysctl -w net.ipv6.conf.LINK.disable_ipv6=1
func DisableIPv6(link string) error { return setAll([]Property{sysctlWithoutIPv6(link)}) }

// CheckNoIPv6 returns an error if the link's sysctl disable_ipv6 isn't 1 or can't be read. It returns nil if the sysctl
// is missing.
func CheckNoIPv6(link string) error {
	s := sysctlWithoutIPv6(link)
	s.Link = "" // no links were observed, so Check must not look for the link
	return s.Check(&Observed{Sysctl: readSysctl})
}
