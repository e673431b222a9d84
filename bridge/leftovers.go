package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/batch"
)

// Ports returns the names of the links that weir has made on the node for pods.
//
// Equivalent to: ls -d /sys/class/net/weirp*
func Ports() ([]string, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, PortPrefix) {
			names = append(names, name)
		}
	}
	return names, nil
}

// HasNeighbour reports whether weir0 has a permanent neighbour entry for one of the addresses. Only weir makes such
// entries, and only for pods on weir0. So an address with an entry belongs to a pod whose link weir has made.
//
// Equivalent to: ip neigh show ADDR dev weir0 nud permanent
func HasNeighbour(addrs []endpoint.Address) (bool, error) {
	index, err := indexOf(Name)
	if index == 0 || err != nil {
		return false, err
	}
	all, err := netlink.NeighList(index, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("list neighbours on %s: %w", Name, err)
	}
	return slices.ContainsFunc(all, func(n netlink.Neigh) bool {
		known, _ := netip.AddrFromSlice(n.IP)
		return n.State == netlink.NUD_PERMANENT &&
			slices.ContainsFunc(addrs, func(a endpoint.Address) bool { return a.Addr == known.Unmap() })
	}), nil
}

// PodAddresses returns the addresses in all network namespaces to which a link of the node leads. It asks for them by
// the node's numbers for the namespaces. So it also works in the agent's container, which has neither the namespaces'
// paths nor the right to enter them. With each address it returns the link that leads to the address's interface. If
// no link leads to the interface, it returns all links to the namespace. It skips namespaces that the kernel is
// deleting.
//
// Equivalent to, for each namespace: ip -n NETNS address show
func PodAddresses() (map[netip.Addr][]Peer, error) {
	lists := batch.NewStrictDumper(unix.NETLINK_ROUTE)
	defer lists.Close()
	links, err := allLinks(lists)
	if err != nil {
		return nil, err
	}
	leading := map[int][]Link{} // links, by the number of the namespace to which a link leads
	for _, l := range links {
		if l.PeerNS >= 0 { // -1 is the node's own namespace
			leading[l.PeerNS] = append(leading[l.PeerNS], l)
		}
	}
	all := map[netip.Addr][]Peer{}
	for namespace, links := range leading {
		answers, err := dump(lists, getAddressesIn(namespace), func(m []byte) (elsewhere, ok bool) {
			return addAddresses(m, links, all), true
		})
		if errors.Is(err, unix.EINVAL) && isOver(lists, namespace) {
			continue
		}
		if err == nil && slices.Contains(answers, false) {
			err = fmt.Errorf("the kernel has listed the node's own: %w", batch.ErrNoAnswer)
		}
		if err != nil {
			return nil, fmt.Errorf("list the addresses in the namespace to which link %s leads: %w", links[0].Name, err)
		}
	}
	return all, nil
}

// isOver reports whether the namespace is gone or being deleted. For a while, the kernel still lists the links that
// lead to such a namespace, although it no longer knows the namespace's number.
func isOver(lists *batch.Dumper, namespace int) bool {
	return errors.Is(lists.Dump(getNamespace(namespace), func([]byte) bool { return true }), unix.ENOENT)
}

// addAddresses adds the address in the kernel's message m to the map, with the link that leads to the address's
// interface. If none of the links leads there, it adds the address with all links. For a point-to-point interface, it
// also adds the other end's address. elsewhere is true if the interface is in another namespace than the node's.
func addAddresses(m []byte, links []Link, to map[netip.Addr][]Peer) (elsewhere bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return false
	}
	index := int(nl.DeserializeIfAddrmsg(m).Index)
	if i := slices.IndexFunc(links, func(l Link) bool { return l.Peer == index }); i >= 0 {
		links = links[i : i+1]
	}
	for kind, value := range attrs.In(m[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_ADDRESS, unix.IFA_LOCAL:
			if addr, ok := netip.AddrFromSlice(value); ok {
				for _, l := range links {
					to[addr] = append(to[addr], Peer{Name: l.Name, Index: l.Index})
				}
			}
		case unix.IFA_TARGET_NETNSID:
			elsewhere = true
		}
	}
	return elsewhere
}

// Senders returns one Sender for each entry of the sets senders4 and senders6.
//
// Equivalent to: nft list set bridge weir senders4; nft list set bridge weir senders6
func Senders() ([]Sender, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	has, err := readSenders(conn)
	if err != nil {
		return nil, err
	}
	var all []Sender
	for _, f := range conf.Families {
		for k := range has[guardSets[f]] {
			if s, ok := senderOf([]byte(k)); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

func senderOf(k []byte) (Sender, bool) {
	if len(k) < 16+8 {
		return Sender{}, false
	}
	addr, ok := netip.AddrFromSlice(k[16+8:])
	name, _, _ := bytes.Cut(k[:16], []byte{0})
	return Sender{
		HostIf: string(name), MAC: net.HardwareAddr(k[16 : 16+6]), Addresses: []endpoint.Address{{Addr: addr}},
	}, ok
}

// ForbidPort removes all entries of the port from the guard's sets. Unlike ForbidSender, it needs no MAC and no
// addresses.
func ForbidPort(hostIf string) error {
	all, err := Senders()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.HostIf == hostIf {
			if err := ForbidSender(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// PortExists reports whether the node has the link. The kernel deletes the link together with the pod's network
// namespace.
//
// Equivalent to: ip link show HOSTIF
func PortExists(hostIf string) (bool, error) {
	index, err := indexOf(hostIf)
	return index != 0, err
}
