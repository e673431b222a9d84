package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// WatchPorts calls gone whenever a pod's link on the node was deleted, or may have been, until ctx ends. It returns an
// error if the kernel's messages can't be received.
//
// Equivalent to: ip monitor link | grep "Deleted .* weirp"
func WatchPorts(ctx context.Context, gone func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
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

// receiveOnlyDellink makes the kernel send only messages of type RTM_DELLINK. The kernel sends half a dozen other
// messages for each new pod's link, and each would wake the agent while the pod waits for the agent. The kernel sends
// one message at a time, and a filter reads numbers in network byte order (socket(7), SO_ATTACH_FILTER).
func receiveOnlyDellink(fd int) error {
	const offsetOfType = 4 // struct nlmsghdr
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

// nodeGroups are the multicast groups in which the kernel announces changes to things that properties are about. Among
// sysctls, the kernel announces only changes of those that switch forwarding (NETCONF).
var nodeGroups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// WatchNode calls changed whenever something that properties are about has changed, or may have, until ctx ends. weir's
// own changes count too. ways is true if the change may concern the tunnel or the routes to other nodes' pods. It
// returns an error if the kernel's messages can't be received.
//
// Equivalent to: ip monitor link address neigh route netconf | grep weir
func WatchNode(ctx context.Context, changed func(ways bool)) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, nodeGroups...)
	if err != nil {
		return fmt.Errorf("watch the node: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	o := &Observed{Links: map[string]Link{}}
	if err := o.readLinks(); err != nil {
		return fmt.Errorf("watch the node: %w", err)
	}
	ours := links{}
	for name, l := range o.Links {
		ours.add(l.Index, name)
	}
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost, perhaps about one of weir's links
			changed(true)
		case err != nil:
			return fmt.Errorf("watch the node: %w", err)
		}
		for _, m := range msgs {
			if concerns, ways := ours.concerns(m); concerns {
				changed(ways)
			}
		}
	}
}

// links are the names of weir's links, by index.
type links map[int]string

// add adds the link if it is weir's.
func (l links) add(index int, name string) {
	if isWeirLink(name) {
		l[index] = name
	}
}

// lookUp reports whether the link is one of weir's, and whether it is the tunnel.
func (l links) lookUp(index int) (ours, tunnel bool) {
	name, ours := l[index]
	return ours, name == conf.Tunnel
}

// concerns reports whether the message is about one of weir's links or the node as a whole. ways reports whether the
// message is about the tunnel or a route to other nodes' pods. A message about a bridge of another plugin counts too.
// concerns keeps l up to date.
func (l links) concerns(m syscall.NetlinkMessage) (concerns, ways bool) {
	if len(m.Data) < unix.SizeofRtMsg {
		return false, false
	}
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		at, ok := parseLink(m.Data)
		if !ok {
			return false, false
		}
		l.add(at.Index, at.Name)
		concerns, ways = l.lookUp(at.Index)
		// A bridge sends the same message, with its own family, when a port leaves it.
		if m.Header.Type == unix.RTM_DELLINK && m.Data[0] != unix.AF_BRIDGE {
			delete(l, at.Index)
		}
		return concerns || at.Kind == "bridge", ways // it may be another plugin's, with pods as ports
	case unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return l.lookUp(integer(m.Data[4:])) // both have the index there: struct ifaddrmsg, struct ndmsg
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		for a := range nl.ParseAttributes(m.Data[unix.SizeofRtMsg:]) {
			if a.Type == unix.RTA_OIF {
				concerns, ways = l.lookUp(integer(a.Value))
			}
		}
		own := m.Data[5] == conf.RouteProtocol // rtm_protocol
		return concerns || own, ways || own
	case unix.RTM_NEWNETCONF:
		return true, false
	}
	return false, false
}

// isPortRemoval reports whether the message says that a pod's link was deleted.
func isPortRemoval(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			name, _, _ := bytes.Cut(a.Value, []byte{0})
			return strings.HasPrefix(string(name), PortPrefix)
		}
	}
	return false
}
