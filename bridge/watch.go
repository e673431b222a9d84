package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
)

// WatchPorts calls gone() whenever a pod's link was deleted, or when it has missed messages of the kernel, so that a
// link may have been deleted. It returns when ctx ends, or with an error if it can't listen to the kernel.
//
// Equivalent to: ip monitor link | grep "Deleted .* weirp"
func WatchPorts(ctx context.Context, gone func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	if err := receiveOnlyDellink(s.GetFd()); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost, perhaps one about a pod's link
			gone()
		case err != nil:
			return fmt.Errorf("watch links: %w", err)
		}
		for _, m := range msgs {
			if isPortRemoval(m) {
				gone()
			}
		}
	}
}

// receiveOnlyDellink drops all messages but RTM_DELLINK: messages about new links would wake the agent while a pod
// waits for its ADD. The filter reads numbers in network byte order (socket(7), SO_ATTACH_FILTER).
func receiveOnlyDellink(fd int) error {
	const offsetOfType = 4 // the offset of nlmsg_type in struct nlmsghdr
	end := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.RTM_DELLINK))
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: offsetOfType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(end), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// News says what may have changed on the node.
type News struct {
	// Settings means that node settings may have changed: sysctls, links, addresses, routes or neighbour entries that
	// weir sets (see Properties).
	Settings bool
	// Overlay means that the tunnel, or a route of weir to other nodes' pods, may have changed.
	Overlay bool
	// Underlay means that the paths to other nodes may have changed.
	Underlay bool
}

var everything = News{Settings: true, Overlay: true, Underlay: true}

// nodeGroups are the kernel's groups of messages that WatchNode gets. The kernel announces sysctls of forwarding
// (NETCONF), but none of weir's other sysctls.
var nodeGroups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
}

// WatchNode calls changed() whenever node settings or paths to other nodes have changed, or may have changed. weir's
// own changes count too. The first call comes at once, with all fields of News set. WatchNode returns when ctx ends,
// or with an error if it can't listen to the kernel.
//
// Equivalent to: ip monitor link address neigh route rule nexthop netconf
func WatchNode(ctx context.Context, changed func(News)) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, nodeGroups...)
	if err != nil {
		return fmt.Errorf("watch the node: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	o := nothingObserved()
	err = o.readLinks()
	o.Close()
	if err != nil {
		return fmt.Errorf("watch the node: %w", err)
	}
	known := listener{ours: map[int]string{}, links: map[int]heardLink{}, addresses: map[heardAddress]bool{}}
	for name, l := range o.Links {
		known.add(l.Index, name)
		known.links[l.Index] = heard(l)
	}
	changed(everything)
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost, perhaps about links and addresses
			clear(known.links)
			clear(known.addresses)
			changed(everything)
		case err != nil:
			return fmt.Errorf("watch the node: %w", err)
		}
		for _, m := range msgs {
			if news := known.news(m); news != (News{}) {
				changed(news)
			}
		}
	}
}

type listener struct {
	ours      map[int]string // names of weir's links, by index
	links     map[int]heardLink
	addresses map[heardAddress]bool
}

type heardLink struct {
	name        string
	mtu, master int
	up, running bool
}

func heard(l Link) heardLink { return heardLink{l.Name, l.MTU, l.Master, l.Up, l.Running} }

type heardAddress struct {
	link    int
	address netip.Prefix
}

func (l *listener) add(index int, name string) {
	if isWeirLink(name) {
		l.ours[index] = name
	}
}

func (l *listener) of(index int) News {
	name, ours := l.ours[index]
	return News{Settings: ours, Overlay: name == conf.Tunnel}
}

// news returns which fields of News the message may concern. A message about another plugin's bridge may also concern
// node settings.
func (l *listener) news(m syscall.NetlinkMessage) News {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return l.newsOfLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return l.newsOfAddress(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return News{Underlay: true}
	case unix.RTM_NEWNETCONF:
		return News{Settings: true}
	}
	if len(m.Data) < unix.SizeofRtMsg { // struct ndmsg has the same size
		return News{}
	}
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return l.of(integer(m.Data[4:])) // the field ndm_ifindex
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		var n News
		for kind, value := range attrs.In(m.Data[unix.SizeofRtMsg:]) {
			if kind == unix.RTA_OIF {
				n = l.of(integer(value))
			}
		}
		own := m.Data[5] == conf.RouteProtocol // the field rtm_protocol
		return News{Settings: n.Settings || own, Overlay: n.Overlay || own, Underlay: !n.Settings && !own}
	}
	return News{}
}

func (l *listener) newsOfLink(m syscall.NetlinkMessage) News {
	at, ok := parseLink(m.Data)
	if !ok {
		return News{}
	}
	l.add(at.Index, at.Name)
	n := l.of(at.Index)
	was, known := l.links[at.Index]
	switch {
	case m.Data[0] == unix.AF_BRIDGE: // the message is about a bridge's port; the link itself still exists
	case m.Header.Type == unix.RTM_DELLINK:
		n.Underlay = !n.Settings
		delete(l.ours, at.Index)
		delete(l.links, at.Index)
	default:
		n.Underlay = !n.Settings && (!known || was != heard(at))
		l.links[at.Index] = heard(at)
	}
	// The bridge may be another plugin's, with pods as ports. The agent then sets nf_call_iptables on it.
	n.Settings = n.Settings || at.Kind == "bridge"
	return n
}

func (l *listener) newsOfAddress(m syscall.NetlinkMessage) News {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return News{}
	}
	index := int(nl.DeserializeIfAddrmsg(m.Data).Index)
	n := l.of(index)
	if n.Settings {
		return n
	}
	for address := range addressesOf(index, [][]byte{m.Data}) {
		key := heardAddress{index, address}
		if m.Header.Type == unix.RTM_DELADDR {
			delete(l.addresses, key)
			n.Underlay = true
			continue
		}
		n.Underlay = n.Underlay || !l.addresses[key]
		l.addresses[key] = true
	}
	return n
}

func isPortRemoval(m syscall.NetlinkMessage) bool {
	l, ok := parseLink(m.Data)
	return ok && m.Header.Type == unix.RTM_DELLINK && strings.HasPrefix(l.Name, PortPrefix)
}
