package iptables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
)

var hooks = map[string]map[string]nftnl.Hook{
	"mangle": {
		"FORWARD": {Kind: "filter", Number: unix.NF_INET_FORWARD, Priority: -150},
		"INPUT":   {Kind: "filter", Number: unix.NF_INET_LOCAL_IN, Priority: -150},
	},
	"filter": {"FORWARD": {Kind: "filter", Number: unix.NF_INET_FORWARD, Priority: 0}},
	"nat":    {"POSTROUTING": {Kind: "nat", Number: unix.NF_INET_POST_ROUTING, Priority: 100}},
}

// misplaced returns the built-in chains of the table that are at a wrong hook, or at none. It asks nf_tables, because
// iptables doesn't show the hook.
//
// Equivalent to: nft list chain ip TABLE CHAIN | grep 'type .* hook' (ip6 for IPv6)
func misplaced(r *nftnl.Reader, f conf.Family, name string) (found []string, err error) {
	for _, chain := range builtin[name] {
		hook, _, err := r.Hook(tableOf(f, name), chain)
		switch {
		case errors.Is(err, nftnl.ErrNotExist):
		case err != nil:
			return nil, err
		case hook == nil || *hook != hooks[name][chain]:
			found = append(found, chain)
		}
	}
	return found, nil
}

func refuseOthers(r *nftnl.Reader, f conf.Family, name string, chains []string) error {
	rules, err := rulesOf(r, f, name)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if slices.ContainsFunc(rules[chain], func(r seen) bool { return !conf.OwnChain(r.target) }) {
			return fmt.Errorf("its chain %s is at another hook than the chain of iptables, or at none, "+
				"and has rules of other programs: delete it", chain)
		}
	}
	return nil
}

// deleteChains deletes built-in chains. When the next rule is added to such a chain, iptables makes the chain again at
// the right hook.
//
// Equivalent to: nft flush chain ip TABLE CHAIN; nft delete chain ip TABLE CHAIN (ip6 for IPv6)
func deleteChains(f conf.Family, name string, chains []string) error {
	var b nftnl.Batch
	for _, chain := range chains {
		b.FlushChain(tableOf(f, name), chain)
		b.DeleteChain(tableOf(f, name), chain)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("delete chains %v of table %s, which hang at other hooks than iptables' own: %w", chains, name, err)
	}
	return nil
}
