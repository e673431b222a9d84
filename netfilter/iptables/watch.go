package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
)

// watch implements Driver.Watch. The kernel reports changes of nf_tables; it reports no changes of the legacy tables.
func watch(ctx context.Context, heard func(generation uint32, concerned bool)) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch the rules: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	before, _ := generation() // 0 without nf_tables
	heard(before, true)
	concerned := false // whether the present transaction has changed something that weir uses
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost: any rule may have changed
			heard(0, true)
		case err != nil:
			return fmt.Errorf("watch the rules: %w", err)
		}
		for _, m := range msgs {
			concerned = concerned || concerns(m)
			if generation, ok := parseGeneration(m.Header.Type, m.Data); ok { // the last message of a transaction
				heard(generation, concerned)
				concerned = false
			}
		}
	}
}

// generation returns the number of the last change of nf_tables. It returns an error if the kernel has no nf_tables.
func generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	for _, m := range msgs {
		if g, ok := parseGeneration(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN, m); ok {
			return g, nil
		}
	}
	return 0, errors.New("ask for the generation of the rules: the kernel's answer has none")
}

// parseGeneration returns the number of a generation from the message that ends a transaction. ok is false for all
// other messages.
func parseGeneration(kind uint16, data []byte) (generation uint32, ok bool) {
	if kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(data) < nl.SizeofNfgenmsg {
		return 0, false
	}
	for kind, value := range attrs.In(data[nl.SizeofNfgenmsg:]) {
		if kind == unix.NFTA_GEN_ID && len(value) == 4 {
			generation, ok = binary.BigEndian.Uint32(value), true
		}
	}
	return generation, ok
}

// concerns reports whether the message describes a change of a table, chain or rule that weir uses. Changes of the
// elements of nf_tables' sets don't count, because each pod that comes or ends changes some.
func concerns(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return false
	}
	var tableAttr, chainAttr uint16
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE: // NEWTABLE also when a table is switched off
		tableAttr = unix.NFTA_TABLE_NAME
	case unix.NFT_MSG_DELCHAIN:
		tableAttr, chainAttr = unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		tableAttr, chainAttr = unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN
	default:
		return false
	}
	var table, chain string
	for kind, value := range attrs.In(m.Data[nl.SizeofNfgenmsg:]) {
		switch value := string(bytes.TrimRight(value, "\x00")); kind {
		case tableAttr:
			table = value
		case chainAttr:
			chain = value
		}
	}
	switch m.Data[0] { // the guard's tables (package bridge)
	case unix.NFPROTO_BRIDGE:
		return table == "weir"
	case unix.NFPROTO_INET, unix.NFPROTO_ARP:
		return table == "weir-ports" || table == conf.TunnelTable
	}
	names, ours := builtin[table]
	return ours && (chainAttr == 0 || conf.OwnChain(chain) || slices.Contains(names, chain))
}
