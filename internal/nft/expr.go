package nft

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Counter returns the statement "counter". Chain.Same ignores what it has counted.
func Counter() []expr.Any { return []expr.Any{&expr.Counter{}} }

// Drop returns the statements "counter drop".
func Drop() []expr.Any { return append(Counter(), Verdict(expr.VerdictDrop, "")...) }

// Log returns the statement "log prefix PREFIX group GROUP": the kernel copies the packet to a netlink log group.
func Log(prefix string, group uint16) []expr.Any {
	return []expr.Any{&expr.Log{
		Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX, Group: group, Data: []byte(prefix),
	}}
}

// WithoutLog returns the rule without statements that log.
func (r Rule) WithoutLog() Rule {
	r.Exprs = slices.DeleteFunc(slices.Clone(r.Exprs), func(e expr.Any) bool {
		_, logs := e.(*expr.Log)
		return logs
	})
	return r
}

// WithoutLog returns the chain without statements that log, and without rules that do nothing else.
func (want Chain) WithoutLog() Chain {
	rules := want.Rules
	want.Rules = nil
	for _, r := range rules {
		if r = r.WithoutLog(); len(r.Exprs) > 0 {
			want.Rules = append(want.Rules, r)
		}
	}
	return want
}

// Verdict returns a verdict statement; chain is the chain to which a jump or goto leads.
func Verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// IIFName returns a match of the incoming link's name. A padded name (LinkName) matches one link. Any other name
// matches all links whose names begin with it, as nft's "weirp*" does.
func IIFName(op expr.CmpOp, name []byte) []expr.Any {
	return []expr.Any{LoadIIFName(unix.NFT_REG_1), &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: name}}
}

// LinkName returns a link's whole name as the kernel compares it: padded with zeros to 16 bytes.
func LinkName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// Equal returns a match of packets for which load puts the value into register 1.
func Equal(load expr.Any, value []byte) []expr.Any { return Compare(load, expr.CmpOpEq, value) }

// Compare returns a match of packets. load puts a value of the packet into register 1, and op compares the register
// with the given value.
func Compare(load expr.Any, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: value}}
}

// LoadIIFName returns the expression that puts the incoming link's name into a register.
func LoadIIFName(register uint32) expr.Any { return LoadMeta(expr.MetaKeyIIFNAME, register) }

// LoadMeta returns the expression that puts a property of the packet, such as its protocol, into a register.
func LoadMeta(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

// LoadPayload returns the expression that puts length bytes of the packet into a register. The bytes begin at
// offset in the header that base names.
func LoadPayload(base expr.PayloadBase, offset, length, register uint32) expr.Any {
	return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
}

// Join joins the parts of one rule. The kernel evaluates a part only if the packet matches all parts before it.
func Join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }
