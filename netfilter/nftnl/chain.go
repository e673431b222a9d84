package nftnl

import (
	"golang.org/x/sys/unix"
)

type Hook struct {
	Kind     string // filter or nat
	Number   uint32 // such as unix.NF_INET_FORWARD
	Priority int32
}

// Chain is a chain without its rules.
type Chain struct {
	Name    string
	Comment string
	Hook    *Hook // nil if packets come only from rules of other chains
}

// These are types of the user data that nft stores with an object (libnftnl, include/libnftnl/udata.h). Comments have
// type 0, except the comments of sets.
const (
	commentOfAnObject  byte = 0
	commentOfASet      byte = 7
	byteOrderOfASet    byte = 0
	dataByteOrderOfSet byte = 1
	typeOfASetsKey     byte = 3
	flagsOfAnElement   byte = 1
)

// These attributes are missing in the package unix (include/uapi/linux/netfilter/nf_tables.h).
const (
	nftaTableUserdata = 6
	nftaTableOwner    = 7
	nftaChainUserdata = 12
)

// AddTable makes the table. If another program has switched the table off, AddTable switches it on.
//
// Equivalent to: nft add table FAMILY TABLE { comment "COMMENT"; }
func (b *Batch) AddTable(t Table, words string) {
	a := attrs{}.text(unix.NFTA_TABLE_NAME, t.Name).number(unix.NFTA_TABLE_FLAGS, 0)
	if words != "" {
		a = a.put(nftaTableUserdata, comment(commentOfAnObject, words))
	}
	b.request(unix.NFT_MSG_NEWTABLE, t, unix.NLM_F_CREATE, nil, a)
}

// DeleteTable deletes the table with everything in it.
//
// Equivalent to: nft delete table FAMILY TABLE
func (b *Batch) DeleteTable(t Table) {
	b.request(unix.NFT_MSG_DELTABLE, t, 0, nil, attrs{}.text(unix.NFTA_TABLE_NAME, t.Name))
}

// AddChain makes the chain. If the chain exists at the same hook, AddChain only sets its policy to accept.
//
// Equivalent to: nft add chain FAMILY TABLE CHAIN { type KIND hook HOOK priority PRIORITY; policy accept; }
// Without a hook: nft add chain FAMILY TABLE CHAIN
func (b *Batch) AddChain(t Table, c Chain) {
	const accept = 1 // NF_ACCEPT
	a := attrs{}.text(unix.NFTA_CHAIN_TABLE, t.Name).text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != nil {
		a = a.put(unix.NFTA_CHAIN_HOOK, attrs{}.number(unix.NFTA_HOOK_HOOKNUM, c.Hook.Number).
			number(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority)))
		a = a.number(unix.NFTA_CHAIN_POLICY, accept).text(unix.NFTA_CHAIN_TYPE, c.Hook.Kind)
	}
	if c.Comment != "" {
		a = a.put(nftaChainUserdata, comment(commentOfAnObject, c.Comment))
	}
	b.request(unix.NFT_MSG_NEWCHAIN, t, unix.NLM_F_CREATE, nil, a)
}

// FlushChain deletes the rules of the chain.
//
// Equivalent to: nft flush chain FAMILY TABLE CHAIN
func (b *Batch) FlushChain(t Table, chain string) {
	b.request(unix.NFT_MSG_DELRULE, t, 0, nil,
		attrs{}.text(unix.NFTA_RULE_TABLE, t.Name).text(unix.NFTA_RULE_CHAIN, chain))
}

// DeleteChain deletes the chain. The chain must be empty, and no rule or element may lead to it.
//
// Equivalent to: nft delete chain FAMILY TABLE CHAIN
func (b *Batch) DeleteChain(t Table, chain string) {
	b.request(unix.NFT_MSG_DELCHAIN, t, 0, nil,
		attrs{}.text(unix.NFTA_CHAIN_TABLE, t.Name).text(unix.NFTA_CHAIN_NAME, chain))
}

// AddRule adds the rule at the end of the chain.
//
// Equivalent to: nft add rule FAMILY TABLE CHAIN EXPRESSIONS comment "COMMENT"
func (b *Batch) AddRule(t Table, chain string, r Rule, about any) {
	b.request(unix.NFT_MSG_NEWRULE, t, unix.NLM_F_CREATE|unix.NLM_F_APPEND, about, ruleAttrs(t, chain, r))
}

func ruleAttrs(t Table, chain string, r Rule) attrs {
	a := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name).text(unix.NFTA_RULE_CHAIN, chain)
	a = a.put(unix.NFTA_RULE_EXPRESSIONS, r.Expressions)
	if r.Comment != "" {
		a = a.put(unix.NFTA_RULE_USERDATA, comment(commentOfAnObject, r.Comment))
	}
	return a
}
