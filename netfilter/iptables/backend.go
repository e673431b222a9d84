package iptables

import (
	"context"

	"github.com/weir-net/weir/netfilter/nftnl"
)

// Tool returns the flavour of iptables that the node uses. It returns "" until the flavour is known.
func (d *Driver) Tool() string { return string(d.Flavour) }

// TellsOfChanges reports whether Watch hears of every change of rules. The result is false with iptables-legacy,
// because the kernel doesn't report changes of legacy tables.
func (d *Driver) TellsOfChanges() bool { return d.Flavour == NFT }

// Watch calls the function heard for every generation (change number) of nf_tables until ctx ends. concerned is true if
// the change touched a table, chain or rule that weir uses. The first call has the present generation. Generation 0
// means that messages were lost. Watch may run at the same time as all other methods.
//
// Equivalent to: nft monitor
func (d *Driver) Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error {
	return nftnl.Watch(ctx, concerns, heard)
}

// Generation returns the number of the last change of nf_tables in this network namespace.
//
// Equivalent to: nft monitor, which shows the number as "new generation"
func (d *Driver) Generation() (uint32, error) { return d.reader.Generation() }

// Knows reports whether the driver has made the change with this generation, or has read the tables after this change
// (see nftnl.KnownChanges).
func (d *Driver) Knows(generation uint32) bool { return d.known.Has(generation) }
