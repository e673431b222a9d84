package iptables

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// print is a fingerprint of a table's rules. While it stays the same, the slow iptables-save isn't needed. In nat it
// covers only POSTROUTING and weir's own chains, because Services may have tens of thousands of rules there. An empty
// print means unknown.
type print string

func (d *Driver) print(f conf.Family, name string, was table) (print, error) {
	switch {
	case d.Flavour == NFT:
		return nftPrint(f, name, was.own())
	case name != "nat":
		now, _, err := legacyPrint(f, name)
		return now, err
	}
	if was.print != "" && d.nat[f].print == was.print && d.nat[f].same(f) {
		return was.print, nil
	}
	began := time.Now()
	now, info, err := legacyPrint(f, name)
	d.nat[f] = natSeen{info, now, began}
	return now, err
}

// nftPrint computes the fingerprint from the rules in nf_tables. own has weir's known chains in the table.
//
// Equivalent to: nft list table ip TABLE; in nat: nft list chain ip nat CHAIN (ip6 for IPv6)
func nftPrint(family conf.Family, name string, own []string) (print, error) {
	h := sha256.New()
	away, err := misplaced(family, name)
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprintln(h, away)
	add := func(only ...string) error {
		chains, err := see(family, name, only...)
		if err != nil {
			return err
		}
		for _, chain := range slices.Sorted(maps.Keys(chains)) {
			_, _ = fmt.Fprintf(h, "%s %d %s", chain, len(chains[chain]), sum(chains[chain]))
		}
		return nil
	}
	if name == "nat" {
		for _, chain := range slices.Concat(builtin[name], own) {
			if err := add(chain); err != nil {
				return "", err
			}
		}
		return print(h.Sum(nil)), nil
	}
	// The number of the table's chains is included, because a new empty chain adds no rule.
	table, err := get(unix.NFT_MSG_GETTABLE, family, nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)))
	if err != nil {
		return "", err
	}
	_, _ = h.Write(table[unix.NFTA_TABLE_USE])
	if err := add(); err != nil {
		return "", err
	}
	return print(h.Sum(nil)), nil
}
