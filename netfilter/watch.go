package netfilter

import (
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// ConcernsGuard reports whether the change is in a table of the guard (package bridge) or the gate (package overlay),
// or in the table for link-local addresses. Both backends watch these tables.
func ConcernsGuard(c nftnl.Change) bool {
	switch c.Family {
	case unix.NFPROTO_BRIDGE:
		return c.Table == conf.GuardTable || c.Table == conf.LinkLocalTable
	case unix.NFPROTO_INET, unix.NFPROTO_ARP:
		return c.Table == conf.PortsTable || c.Table == conf.TunnelTable
	}
	return false
}
