package nftnl

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

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
			if h, accepts := hookIn(answer); h != nil && h.Number == hook {
				table, name := chainIn(answer)
				found = append(found, BaseChain{Table{family, table}, name, *h, accepts})
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
	err = r.dumpRules(t, chain, func() { rules = nil }, func(heard heardRule) bool {
		one := heard.listed()
		one.Expressions = slices.Clone(one.Expressions)
		rules = append(rules, one)
		return true
	})
	return rules, err
}

// EachRule passes the rules of all chains of the table to the function each. It calls the function begin first. If the
// rules change meanwhile, it calls begin again, and starts anew. Expressions are valid until the function each returns.
//
// Equivalent to: nft -a list table FAMILY TABLE
func (r *Reader) EachRule(t Table, begin func(), each func(chain string, rule Listed)) error {
	return r.dumpRules(t, "", begin, func(heard heardRule) bool {
		each(heard.chain, heard.listed())
		return true
	})
}

func (r heardRule) listed() Listed {
	words := netattrs.Text(userdataIn(r.userdata, commentOfAnObject))
	return Listed{Rule{r.expressions, words}, r.handle}
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

// Mentions reports whether the expressions of any rule of the table contain the bytes.
//
// Equivalent to: nft list table FAMILY TABLE | grep BYTES
func (r *Reader) Mentions(t Table, what []byte) (found bool, err error) {
	err = r.dumpRules(t, "", func() { found = false }, func(heard heardRule) bool {
		found = bytes.Contains(heard.expressions, what)
		return !found
	})
	return found, err
}
