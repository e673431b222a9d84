package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

type hook struct {
	kind     string
	number   uint32
	priority int32
}

var hooks = map[string]map[string]hook{
	"mangle": {"FORWARD": {"filter", unix.NF_INET_FORWARD, -150}, "INPUT": {"filter", unix.NF_INET_LOCAL_IN, -150}},
	"filter": {"FORWARD": {"filter", unix.NF_INET_FORWARD, 0}},
	"nat":    {"POSTROUTING": {"nat", unix.NF_INET_POST_ROUTING, 100}},
}

// misplaced returns the table's built-in chains that are at a wrong hook, which iptables doesn't show.
//
// Equivalent to: nft list chain ip TABLE CHAIN | grep 'type .* hook' (ip6 for IPv6)
func misplaced(family conf.Family, name string) (found []string, err error) {
	for _, chain := range builtin[name] {
		attrs, err := get(unix.NFT_MSG_GETCHAIN, family, nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(name)),
			nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chain)))
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("look up chain %s of table %s: %w", chain, name, err)
		case readHook(attrs) != hooks[name][chain]:
			found = append(found, chain)
		}
	}
	return found, nil
}

func readHook(chain map[uint16][]byte) (h hook) {
	at := attributes(chain[unix.NFTA_CHAIN_HOOK])
	number, priority := at[unix.NFTA_HOOK_HOOKNUM], at[unix.NFTA_HOOK_PRIORITY]
	if len(number) == 4 && len(priority) == 4 {
		h = hook{text(chain[unix.NFTA_CHAIN_TYPE]), binary.BigEndian.Uint32(number), int32(binary.BigEndian.Uint32(priority))}
	}
	return h
}

func others(family conf.Family, name string, chains []string) error {
	rules, err := see(family, name)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if slices.ContainsFunc(rules[chain], func(r seen) bool { return !ours(r.target) }) {
			return fmt.Errorf("its chain %s hangs at another hook than iptables' own, or at none, "+
				"and has others' rules: delete it", chain)
		}
	}
	return nil
}

// deleteChains deletes built-in chains. With the next rule for such a chain, iptables makes the chain again at the
// right hook.
//
// Equivalent to: nft flush chain ip TABLE CHAIN; nft delete chain ip TABLE CHAIN (ip6 for IPv6)
func deleteChains(f conf.Family, name string, chains []string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: name, Family: libraryFamilies[f]}
	for _, chain := range chains {
		conn.FlushChain(&nftables.Chain{Name: chain, Table: table})
		conn.DelChain(&nftables.Chain{Name: chain, Table: table})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete chains %v of table %s, which hang at other hooks than iptables' own: %w", chains, name, err)
	}
	return nil
}
