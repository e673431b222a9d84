package iptables

import "context"

// Name is the flavour of iptables that the node uses; empty while that isn't known.
func (d *Driver) Name() string { return string(d.Flavour) }

// TellsOfChanges says that the kernel tells Watch of every change of the rules. It doesn't of the legacy tables.
func (d *Driver) TellsOfChanges() bool { return d.Flavour == NFT }

// Watch calls heard of every generation of nf_tables until ctx ends. It may run beside all other methods. concerned is
// true if the transaction touched a table, chain or rule that weir uses, including changes by weir itself, which Knows
// tells apart. The first call reports the present generation as concerned; generation 0 means that messages were lost.
//
// Equivalent to: nft monitor
func (d *Driver) Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error {
	return watch(ctx, heard)
}

// Generation is how often nf_tables has been changed in this network namespace.
//
// Equivalent to: nft -j list tables | jq .nftables[0]; nft monitor shows it as "new generation"
func (d *Driver) Generation() (uint32, error) { return generation() }
