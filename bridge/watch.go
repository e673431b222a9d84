package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// WatchPorts calls gone whenever a pod's link on the node has gone, or may have, until ctx ends.
//
// Equivalent to: ip monitor link | grep "Deleted .* weirp"
func WatchPorts(ctx context.Context, gone func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost: it may have been any
			gone()
		case err != nil:
			return fmt.Errorf("watch links: %w", err)
		}
		for _, m := range msgs {
			if tellsOfEnd(m) {
				gone()
			}
		}
	}
}

func tellsOfEnd(m syscall.NetlinkMessage) bool {
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
