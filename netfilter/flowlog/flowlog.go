//go:build linux

// Package flowlog owns the nftables table "inet weir-flows". Its rules copy the first packet of each connection from
// and to pods to a netlink log group, if the policies have allowed the packet.
//
//	table inet weir-flows {
//	  set links { type ifname; elements = { "weir0" } }
//	  chain forward {
//	    type filter hook forward priority -149; policy accept;
//	    ct state new iifname @links goto log
//	    ct state new oifname @links goto log
//	  }
//	  chain input {
//	    type filter hook input priority -149; policy accept;
//	    ct state new iifname @links goto log
//	  }
//	  chain log {
//	    limit rate 2000/second burst 4000 packets log prefix "weir flow" group 89 return
//	    counter
//	  }
//	}
//
// The priority -149 comes directly after -150, at which policies are enforced. Packets that the node itself sends to
// its pods aren't logged.
//
// Invariants:
//   - The rules drop no packet.
//   - The table is whole or absent: one transaction makes, replaces or deletes it. Make and Remove can be repeated.
//   - The limit bounds the cost of a flood of connections. The counter counts the packets beyond the limit.
package flowlog

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

const (
	behindPolicies = -149
	rate, burst    = 2000, 4000 // rate in packets per second, burst in packets
	// stateNew is NF_CT_STATE_BIT(IP_CT_NEW) (include/uapi/linux/netfilter/nf_conntrack_common.h).
	stateNew = 1 << 3
	beyond   = "weir: beyond the limit"
)

func table() *nftables.Table {
	return &nftables.Table{Name: conf.FlowTable, Family: nftables.TableFamilyINet}
}

// Make makes the table for packets that come in or go out by one of the links. If the table exists, the same
// transaction replaces it.
//
// Equivalent to: nft -f, with "table inet weir-flows; delete table inet weir-flows" before the table of the package's
// comment
func Make(links []string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := table()
	conn.AddTable(t) // makes sure that the table exists, because DelTable would fail otherwise
	conn.DelTable(t)
	conn.AddTable(t)
	set := &nftables.Set{Table: t, Name: "links", KeyType: nftables.TypeIFName}
	var elements []nftables.SetElement
	for _, l := range slices.Compact(slices.Sorted(slices.Values(links))) {
		elements = append(elements, nftables.SetElement{Key: nft.LinkName(l)})
	}
	if err := conn.AddSet(set, elements); err != nil {
		return fmt.Errorf("make the set of links in nftables table inet %s: %w", conf.FlowTable, err)
	}
	nft.AddChains(conn, chains(set))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table inet %s: %w", conf.FlowTable, err)
	}
	return nil
}

func chains(set *nftables.Set) []nft.Chain {
	t := table()
	logChain := &nftables.Chain{Name: "log", Table: t}
	first := func(link expr.MetaKey) nft.Rule {
		return nft.Rule{Comment: "weir: first packets that the policies allow", Exprs: nft.Join(
			[]expr.Any{
				&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
				&expr.Bitwise{
					SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(stateNew),
					Xor: make([]byte, 4),
				},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
				nft.LoadMeta(link, 1),
				&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			},
			nft.Verdict(expr.VerdictGoto, logChain.Name),
		)}
	}
	within := nft.Rule{Comment: "weir: within the limit", Exprs: nft.Join(
		[]expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst}},
		nft.Log(conf.FlowLogPrefix, conf.FlowGroup), nft.Verdict(expr.VerdictReturn, ""),
	)}
	in, out := first(expr.MetaKeyIIFNAME), first(expr.MetaKeyOIFNAME)
	return []nft.Chain{
		{Chain: logChain, Rules: []nft.Rule{within, {Comment: beyond, Exprs: nft.Counter()}}},
		{
			Chain: nft.BaseChain(t, "forward", nftables.ChainHookForward, behindPolicies),
			Rules: []nft.Rule{in, out},
		},
		{Chain: nft.BaseChain(t, "input", nftables.ChainHookInput, behindPolicies), Rules: []nft.Rule{in}},
	}
}

// Beyond returns the number of packets since Make that were not logged, because they were beyond the limit. The second
// result is false if the table doesn't exist.
//
// Equivalent to: nft list chain inet weir-flows log
func Beyond() (packets uint64, there bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return 0, false, fmt.Errorf("open nftables: %w", err)
	}
	have, err := nft.ListChains(conn, table())
	if err != nil {
		return 0, false, err
	}
	for _, r := range have["log"].Rules {
		if nft.Comment(r) != beyond {
			continue
		}
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				return c.Packets, true, nil
			}
		}
	}
	return 0, false, nil
}

// Remove deletes the table. It is no error if the table doesn't exist.
//
// Equivalent to: nft delete table inet weir-flows
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := table()
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err == nil && !slices.ContainsFunc(tables, func(have *nftables.Table) bool { return have.Name == t.Name }) {
		return nil // an agent that starts without a table must not change nf_tables
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table inet %s: %w", conf.FlowTable, err)
	}
	return nil
}
