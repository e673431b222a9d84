package iptables

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// fingerprint is a hash of a table's rules. While the hash stays the same, the driver needn't run the slow
// iptables-save. For the table nat, the hash covers only POSTROUTING and weir's own chains, because Services may have
// tens of thousands of rules there. An empty fingerprint means that the hash is unknown.
type fingerprint string

func (d *Driver) print(f conf.Family, name string, was table) (fingerprint, error) {
	switch {
	case d.Flavour == NFT:
		return nftPrint(d.reader, f, name, was.own())
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

// nftPrint computes the fingerprint from the rules in nf_tables. The parameter own has the names of weir's known
// chains in the table.
//
// Equivalent to: nft list table ip TABLE; in nat: nft list chain ip nat CHAIN (ip6 for IPv6)
func nftPrint(r *nftnl.Reader, f conf.Family, name string, own []string) (fingerprint, error) {
	h := sha256.New()
	away, err := misplaced(r, f, name)
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprintln(h, away)
	add := func(chain string, rules []seen) { _, _ = fmt.Fprintf(h, "%s %d %s", chain, len(rules), sum(rules)) }
	if name == "nat" {
		for _, chain := range slices.Concat(builtin[name], own) {
			rules, err := rulesOfChain(r, f, name, chain)
			if err != nil {
				return "", err
			}
			add(chain, rules)
		}
		return fingerprint(h.Sum(nil)), nil
	}
	// The hash includes the number of the table's chains, because a new empty chain adds no rule.
	table, err := r.Table(tableOf(f, name))
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprintln(h, table.Objects)
	chains, err := rulesOf(r, f, name)
	if err != nil {
		return "", err
	}
	for _, chain := range slices.Sorted(maps.Keys(chains)) {
		add(chain, chains[chain])
	}
	return fingerprint(h.Sum(nil)), nil
}
