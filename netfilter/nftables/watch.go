package nftables

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
)

func (d *Driver) TellsOfChanges() bool { return true }

// Watch calls the function heard for every generation (change number) of nf_tables until ctx ends. concerned is true if
// the change touched a table of weir, of the guard or of the gate (see netfilter.ConcernsGuard), or a chain FORWARD of
// iptables-nft. Generation 0 means that messages were lost. Watch may run at the same time as all other methods.
//
// Equivalent to: nft monitor
func (d *Driver) Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error {
	return nftnl.Watch(ctx, concerns, heard)
}

func concerns(c nftnl.Change) bool {
	own := c.Table == tableName && (c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6)
	return own || concernsAccept(c) || netfilter.ConcernsGuard(c)
}

// Generation returns the number of the last change of nf_tables in this network namespace.
func (d *Driver) Generation() (uint32, error) { return d.reader.Generation() }

// Knows reports whether the driver already knows the change with this generation (nftnl.KnownChanges).
func (d *Driver) Knows(generation uint32) bool { return d.known.Has(generation) }
