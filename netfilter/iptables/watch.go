package iptables

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// concerns reports whether the change is in a table of the guard or the gate (see netfilter.ConcernsGuard), in a chain
// of weir's, or in a built-in chain in which weir has rules. If one of iptables' tables itself is added, changed or
// deleted, concerns returns true too.
func concerns(c nftnl.Change) bool {
	if netfilter.ConcernsGuard(c) {
		return true
	}
	names, ours := builtin[c.Table]
	return ours && (c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6) &&
		(c.Chain == "" || conf.OwnChain(c.Chain) || slices.Contains(names, c.Chain))
}
