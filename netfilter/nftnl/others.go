package nftnl

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// This attribute is missing in the package unix (include/uapi/linux/netfilter/nf_tables.h).
const nftaTableOwner = 7

// BaseChain is a chain at a hook. It may belong to any program.
type BaseChain struct {
	Table
	Name    string
	Hook    Hook
	Accepts bool // true if the chain accepts packets that reach its end
}

func (t Table) String() string { return familyNames[t.Family] + " " + t.Name }

var familyNames = map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}

// BaseChains returns the chains of all tables for IP packets at the hook, such as unix.NF_INET_FORWARD.
//
// Equivalent to: nft list chains
func (r *Reader) BaseChains(hook uint32) (chains []BaseChain, err error) {
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		var found []BaseChain
		err := r.list(unix.NFT_MSG_GETCHAIN, Table{Family: family}, nil, func() { found = nil }, func(answer []byte) bool {
			c := BaseChain{Table: Table{Family: family}}
			h, accepts := hookIn(answer)
			for kind, value := range netattrs.In(answer) {
				switch kind {
				case unix.NFTA_CHAIN_TABLE:
					c.Table.Name = netattrs.Text(value)
				case unix.NFTA_CHAIN_NAME:
					c.Name = netattrs.Text(value)
				}
			}
			if h != nil && h.Number == hook {
				c.Hook, c.Accepts = *h, accepts
				found = append(found, c)
			}
			return true
		})
		if err != nil {
			return nil, wrap(err, "list the chains of nf_tables")
		}
		chains = append(chains, found...)
	}
	return chains, nil
}

// Owner returns the netlink port ID, usually a process ID, of the program that owns the table. It returns 0 if the
// table has no owner.
//
// Equivalent to: nft list table FAMILY TABLE, which shows "flags owner" and the program's name
func (r *Reader) Owner(t Table) uint32 {
	answer, err := r.get(unix.NFT_MSG_GETTABLE, t, attrs{}.text(unix.NFTA_TABLE_NAME, t.Name),
		"look up table %s of nf_tables", t.Name)
	if err != nil {
		return 0
	}
	for kind, value := range netattrs.In(answer) {
		if kind == nftaTableOwner {
			return numberOf(value)
		}
	}
	return 0
}

// Listed is a rule in the kernel. Handle is the number by which it can be deleted.
type Listed struct {
	Rule
	Handle uint64
}

// List returns the rules of the chain in order. If there is no such chain, the error is ErrNotExist.
//
// Equivalent to: nft -a list chain FAMILY TABLE CHAIN
func (r *Reader) List(t Table, chain string) (rules []Listed, err error) {
	if _, _, err := r.Hook(t, chain); err != nil {
		return nil, err
	}
	body := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name).text(unix.NFTA_RULE_CHAIN, chain)
	err = r.list(unix.NFT_MSG_GETRULE, t, body, func() { rules = nil }, func(answer []byte) bool {
		if table, in, one := parseListed(answer); table == t.Name && in == chain {
			one.Expressions = slices.Clone(one.Expressions)
			rules = append(rules, one)
		}
		return true
	})
	return rules, wrap(err, "list the rules of chain %s", chain)
}

// EachRule passes the rules of all chains of the table to the function each. It calls the function begin first, and
// again if the rules change meanwhile: then it starts anew. Expressions are valid until the function each returns.
//
// Equivalent to: nft -a list table FAMILY TABLE
func (r *Reader) EachRule(t Table, begin func(), each func(chain string, rule Listed)) error {
	body := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name)
	err := r.list(unix.NFT_MSG_GETRULE, t, body, begin, func(answer []byte) bool {
		if table, chain, one := parseListed(answer); table == t.Name {
			each(chain, one)
		}
		return true
	})
	return wrap(err, "list the rules of table %s", t.Name)
}

func parseListed(answer []byte) (table, chain string, rule Listed) {
	for kind, value := range netattrs.In(answer) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			table = netattrs.Text(value)
		case unix.NFTA_RULE_CHAIN:
			chain = netattrs.Text(value)
		case unix.NFTA_RULE_HANDLE:
			if len(value) == 8 {
				rule.Handle = binary.BigEndian.Uint64(value)
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			rule.Expressions = value
		case unix.NFTA_RULE_USERDATA:
			rule.Comment = netattrs.Text(userdataIn(value, commentOfAnObject))
		}
	}
	return table, chain, rule
}

// InsertRule adds the rule before an existing rule, whose handle is the parameter before.
//
// Equivalent to: nft insert rule FAMILY TABLE CHAIN handle HANDLE EXPRESSIONS comment "COMMENT"
func (b *Batch) InsertRule(t Table, chain string, r Rule, before uint64) {
	b.request(unix.NFT_MSG_NEWRULE, t, unix.NLM_F_CREATE, nil,
		ruleAttrs(t, chain, r).put(unix.NFTA_RULE_POSITION, binary.BigEndian.AppendUint64(nil, before)))
}

// DeleteRule deletes the rule with the handle.
//
// Equivalent to: nft delete rule FAMILY TABLE CHAIN handle HANDLE
func (b *Batch) DeleteRule(t Table, chain string, handle uint64) {
	b.request(unix.NFT_MSG_DELRULE, t, 0, nil,
		attrs{}.text(unix.NFTA_RULE_TABLE, t.Name).text(unix.NFTA_RULE_CHAIN, chain).
			put(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, handle)))
}

// Mentions reports whether a rule of the table has the bytes in its expressions.
//
// Equivalent to: nft list table FAMILY TABLE | grep BYTES
func (r *Reader) Mentions(t Table, what []byte) (found bool, err error) {
	body := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name)
	err = r.list(unix.NFT_MSG_GETRULE, t, body, func() { found = false }, func(answer []byte) bool {
		for kind, value := range netattrs.In(answer) {
			found = found || kind == unix.NFTA_RULE_EXPRESSIONS && bytes.Contains(value, what)
		}
		return !found
	})
	return found, wrap(err, "list the rules of table %s", t.Name)
}

// VerdictOf returns the verdict in the data of an immediate expression. ok is false if the data isn't a verdict.
func VerdictOf(data []byte) (v Verdict, ok bool) {
	for kind := range netattrs.In(data) {
		ok = ok || kind == unix.NFTA_DATA_VERDICT
	}
	return parseVerdict(data), ok
}
