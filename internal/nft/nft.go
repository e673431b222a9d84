// Package nft writes nftables chains, and compares them with the chains in the kernel. The packages bridge (the guard),
// overlay (the gate) and flowlog use it.
//
// Invariants:
//   - The package opens no connection to the kernel, and chooses no table: the caller passes both.
//   - AddChains only adds to the caller's transaction. Nothing changes before the caller commits it.
//   - Two chains are the same only if they have the same hook and the same rules in the same order. Values of counters
//     don't matter.
//   - A table that another program owns or has disabled counts as missing.
package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Rule is a rule that the kernel should have.
type Rule struct {
	Comment string
	Exprs   []expr.Any
}

// Chain is a chain that the kernel should have, with its rules in order.
type Chain struct {
	*nftables.Chain
	Rules []Rule
}

// BaseChain returns a filter chain at a hook, with the policy accept.
//
// Equivalent to: nft add chain FAMILY TABLE NAME { type filter hook HOOK priority PRIORITY; policy accept; }
func BaseChain(
	t *nftables.Table, name string, hook *nftables.ChainHook, priority nftables.ChainPriority,
) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Name: name, Table: t, Type: nftables.ChainTypeFilter, Policy: &accept, Hooknum: hook, Priority: &priority,
	}
}

// AddChains adds the chains to the connection's transaction. It replaces the rules of existing chains. All chains are
// added before the first rule, because a rule can only jump to an existing chain.
//
// Equivalent to: nft add chain …; nft flush chain …; nft add rule … for each
func AddChains(conn *nftables.Conn, chains []Chain) {
	for _, c := range chains {
		conn.AddChain(c.Chain)
		conn.FlushChain(c.Chain)
	}
	for _, c := range chains {
		for _, r := range c.Rules {
			conn.AddRule(&nftables.Rule{
				Table: c.Table, Chain: c.Chain, Exprs: r.Exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.Comment),
			})
		}
	}
}

// Listed is a chain that the kernel has, with its rules.
type Listed struct {
	*nftables.Chain
	Rules []*nftables.Rule
}

// ListChains returns the table's chains by name. If the table is missing, it returns no chains and no error.
//
// Equivalent to: nft list table FAMILY TABLE
func ListChains(conn *nftables.Conn, t *nftables.Table) (map[string]Listed, error) {
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables table %s: %w", t.Name, err)
	}
	all := map[string]Listed{}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if errors.Is(err, unix.ENOENT) { // the chain was deleted after it was listed
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the rules of nftables chain %s %s: %w", t.Name, c.Name, err)
		}
		all[c.Name] = Listed{c, rules}
	}
	return all, nil
}

// Same reports whether the kernel's chain has the wanted hook and the wanted rules. It ignores the values of counters.
func (want Chain) Same(have Listed) bool {
	return want.SameHook(have) && slices.EqualFunc(have.Rules, want.Rules, func(h *nftables.Rule, w Rule) bool {
		return w.same(want.Table.Family, h)
	})
}

// SameHook reports whether the kernel's chain has the wanted hook and priority, and the policy accept. If want has no
// hook, SameHook returns true if the kernel's chain has no hook.
func (want Chain) SameHook(have Listed) bool {
	if have.Chain == nil {
		return false
	}
	if want.Hooknum == nil {
		return have.Hooknum == nil
	}
	accepts := have.Policy == nil || *have.Policy == nftables.ChainPolicyAccept
	return have.Hooknum != nil && *have.Hooknum == *want.Hooknum && have.Priority != nil &&
		*have.Priority == *want.Priority && accepts
}

func (want Rule) same(family nftables.TableFamily, have *nftables.Rule) bool {
	return Comment(have) == want.Comment && slices.EqualFunc(have.Exprs, want.Exprs, func(a, b expr.Any) bool {
		x, errX := encode(family, a)
		y, errY := encode(family, b)
		return errX == nil && errY == nil && bytes.Equal(x, y)
	})
}

// Comment returns the comment of a rule in the kernel. If the rule has no comment, it returns "".
func Comment(r *nftables.Rule) string {
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return comment
}

// encode returns the expression as bytes, without the parts in which equal rules may differ: values of counters, and
// IDs of sets, which are valid only in one transaction.
func encode(family nftables.TableFamily, e expr.Any) ([]byte, error) {
	switch x := e.(type) {
	case *expr.Counter:
		e = &expr.Counter{}
	case *expr.Lookup:
		e = &expr.Lookup{SourceRegister: x.SourceRegister, SetName: x.SetName, Invert: x.Invert}
	case *expr.Dynset:
		set := *x
		set.SetID = 0
		e = &set
	}
	return expr.Marshal(byte(family), e)
}

// TableExists returns true if the kernel has the table, and the table's rules are in force. A table with flags counts
// as missing: another program owns the table, or has disabled it ("dormant").
//
// Equivalent to: nft list tables FAMILY
func TableExists(conn *nftables.Conn, t *nftables.Table) (bool, error) {
	// This lists the tables, because the library's error for a missing table can't be told from its other errors.
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(have *nftables.Table) bool {
		return have.Name == t.Name && have.Flags == 0
	}), nil
}
