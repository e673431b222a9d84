package nftnl

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// Change is a table, chain or rule that a transaction has changed. If the table itself has changed, Chain is empty.
type Change struct {
	Family       uint8
	Table, Chain string
}

// Watch calls the function heard for every generation (change number) of nf_tables until ctx ends. concerned is true if
// the function concerns returns true for one of the transaction's changes. The first call comes at once, with the
// present generation and concerned true. Generation 0 means that messages were lost, or in the first call that the
// kernel has no nf_tables. New chains and changes of sets don't count as changes.
//
// Equivalent to: nft monitor
func Watch(ctx context.Context, concerns func(Change) bool, heard func(generation uint32, concerned bool)) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch the rules: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	before, _ := Generation() // 0 if the kernel has no nf_tables
	heard(before, true)
	concerned := false // true if a change of the present transaction concerns the caller
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			heard(0, true)
		case err != nil:
			return fmt.Errorf("watch the rules: %w", err)
		}
		for _, m := range msgs {
			if c, ok := changeIn(m); ok {
				concerned = concerned || concerns(c)
			}
			if generation, ok := generationIn(m); ok { // the last message of a transaction
				heard(generation, concerned)
				concerned = false
			}
		}
	}
}

func generationIn(m syscall.NetlinkMessage) (generation uint32, ok bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(m.Data) < sizeofGenmsg {
		return 0, false
	}
	for kind, value := range netattrs.In(m.Data[sizeofGenmsg:]) {
		if kind == unix.NFTA_GEN_ID && len(value) == 4 {
			generation, ok = numberOf(value), true
		}
	}
	return generation, ok
}

func changeIn(m syscall.NetlinkMessage) (c Change, ok bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < sizeofGenmsg {
		return c, false
	}
	var table, chain uint16
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE: // NEWTABLE also tells that a table was switched off
		table = unix.NFTA_TABLE_NAME
	case unix.NFT_MSG_DELCHAIN:
		table, chain = unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		table, chain = unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN
	default:
		return c, false
	}
	c.Family = m.Data[0]
	for kind, value := range netattrs.In(m.Data[sizeofGenmsg:]) {
		switch kind {
		case table:
			c.Table = netattrs.Text(value)
		case chain:
			c.Chain = netattrs.Text(value)
		}
	}
	return c, true
}
