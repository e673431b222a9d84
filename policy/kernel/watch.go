package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed whenever somebody, weir included, changed rules where weir has its own, until ctx ends. The kernel
// tells so for nf_tables only; of the legacy tables nothing is heard.
//
// Equivalent to: nft monitor rules
func Watch(ctx context.Context, changed func()) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch the rules: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost: it may have been any
			changed()
		case err != nil:
			return fmt.Errorf("watch the rules: %w", err)
		case slices.ContainsFunc(msgs, concerns):
			changed()
		}
	}
}

// concerns says whether the message tells of a change to a table, chain or rule that weir goes by. The elements of sets,
// which every pod changes, are not among them.
func concerns(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return false
	}
	var tableAttr, chainAttr uint16
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE:
		tableAttr = unix.NFTA_TABLE_NAME
	case unix.NFT_MSG_DELCHAIN:
		tableAttr, chainAttr = unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		tableAttr, chainAttr = unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN
	default:
		return false
	}
	var table, chain string
	for a := range nl.ParseAttributes(m.Data[nl.SizeofNfgenmsg:]) {
		switch value := string(bytes.TrimRight(a.Value, "\x00")); a.Type & nl.NLA_TYPE_MASK {
		case tableAttr:
			table = value
		case chainAttr:
			chain = value
		}
	}
	if m.Data[0] == unix.NFPROTO_BRIDGE {
		return table == "weir"
	}
	names, ours := builtin[table]
	return ours && (chainAttr == 0 || strings.HasPrefix(chain, chainPrefix) || slices.Contains(names, chain))
}
