package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/batch"
)

// dump reads a list from the kernel, and parses each message. If the list changes meanwhile, dump reads it again, up to
// five times in all. The function parse must not keep parts of a message, because the next message overwrites them.
func dump[T any](
	lists *batch.Dumper, list *nl.NetlinkRequest, parse func(message []byte) (T, bool),
) (all []T, err error) {
	for range 5 {
		all = nil
		err = lists.Dump(list, func(m []byte) bool {
			if one, ok := parse(m); ok {
				all = append(all, one)
			}
			return true
		})
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// withoutStatistics makes the kernel leave out the counters of links, because reading them takes most of the time
// (RTEXT_FILTER_SKIP_STATS in linux/rtnetlink.h).
func withoutStatistics() *nl.RtAttr { return number(unix.IFLA_EXT_MASK, 1<<3) }

func allLinks(lists *batch.Dumper) ([]Link, error) {
	list := request(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifInfo(unix.AF_UNSPEC, 0), withoutStatistics())
	all, err := dump(lists, list, parseLink)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

func (o *Observed) readLinks() error {
	all, err := allLinks(o.lists)
	for _, l := range all {
		o.Links[l.Name] = l
	}
	return err
}

type neighbourEntry struct {
	link  int
	state uint16
	addr  netip.Addr
	mac   string
}

func parseNeighbour(m []byte) (n neighbourEntry, ok bool) {
	if len(m) < unix.SizeofNdMsg {
		return n, false
	}
	n.link, n.state = integer(m[4:]), binary.NativeEndian.Uint16(m[8:]) // the fields ndm_ifindex and ndm_state
	for kind, value := range attrs.In(m[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			n.mac = net.HardwareAddr(value).String()
		}
	}
	return n, true
}

// readNeighbours skips the entries of other links, which kernels before 4.4 also list.
func (o *Observed) readNeighbours(link int, family uint8) error {
	list := request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, &netlink.Ndmsg{Family: family}, number(unix.NDA_IFINDEX, link))
	all, err := dump(o.lists, list, func(m []byte) (neighbourEntry, bool) {
		if len(m) < unix.SizeofNdMsg || integer(m[4:]) != link { // the field ndm_ifindex
			return neighbourEntry{}, false
		}
		return parseNeighbour(m)
	})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	if o.Neighbours[link] == nil {
		o.Neighbours[link] = map[netip.Addr]neighbourSeen{}
	}
	for _, n := range all {
		if n.addr.IsValid() {
			o.Neighbours[link][n.addr.Unmap()] = neighbourSeen{n.mac, n.state == netlink.NUD_PERMANENT}
		}
	}
	return nil
}

// Equivalent to: bridge fdb show br weir0 | grep -e permanent -e static
func (o *Observed) readForwarding(bridge int) error {
	list := request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, ifInfo(unix.AF_BRIDGE, 0), number(unix.IFLA_MASTER, bridge))
	all, err := dump(o.lists, list, func(m []byte) (neighbourEntry, bool) {
		n, ok := parseNeighbour(m)
		return n, ok && n.state&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0
	})
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range all {
		if o.Forwarding[n.link] == nil {
			o.Forwarding[n.link] = map[string]bool{}
		}
		o.Forwarding[n.link][n.mac] = true
	}
	return nil
}

// readRoutes leaves out weir's routes to other nodes' pods: there may be thousands, and package overlay reads them.
func (o *Observed) readRoutes(family uint8) error {
	list := request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
	all, err := dump(o.lists, list, func(m []byte) (routeSeen, bool) {
		r, ok := parseRoute(m)
		return r, ok && r.Protocol != conf.RouteProtocol
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	o.Routes = append(o.Routes, all...)
	return nil
}

// podMTU returns the MTU of the pod's end of a veth pair. The parameter port is the node's end. podMTU returns 0 if
// the pod's end is gone, or if the namespace of that end is unknown.
//
// Equivalent to: ip -n NETNS -d link show IFNAME
func (o *Observed) podMTU(port Link) (mtu int, err error) {
	if mtu, ok := o.mtus[port.Index]; ok || port.PeerNS < 0 || port.Peer <= 0 {
		return mtu, nil
	}
	// Unlike a list, the answer about one link has no end mark. The acknowledgement tells Dump that the answer is
	// complete.
	get := getPeer(port)
	get.Flags |= unix.NLM_F_ACK
	err = o.lists.Dump(get, func(m []byte) bool {
		if l, ok := parseLink(m); ok {
			mtu = l.MTU
		}
		return true
	})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL): // the pod's namespace is being deleted
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look up the other end of %s: %w", port.Name, err)
	}
	o.mtus[port.Index] = mtu
	return mtu, nil
}
