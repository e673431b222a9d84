package nft

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Counter returns the statement "counter". Chain.Same ignores the counter's value.
func Counter() []expr.Any { return []expr.Any{&expr.Counter{}} }

// Drop returns the statements "counter drop".
func Drop() []expr.Any { return append(Counter(), Verdict(expr.VerdictDrop, "")...) }

// Log returns the statement "log prefix PREFIX group GROUP", by which the kernel copies packets to a netlink log group.
func Log(prefix string, group uint16) []expr.Any {
	return []expr.Any{&expr.Log{
		Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX, Group: group, Data: []byte(prefix),
	}}
}

func (r Rule) WithoutLog() Rule {
	r.Exprs = slices.DeleteFunc(slices.Clone(r.Exprs), func(e expr.Any) bool {
		_, logs := e.(*expr.Log)
		return logs
	})
	return r
}

// WithoutLog returns the chain without log statements. Rules that only log are removed.
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

// Verdict returns a verdict statement. chain is the target of a jump or goto, and empty for other verdicts.
func Verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// IIFName returns a match of the name of the link by which the packet came in. A name from LinkName matches one link.
// Any other name matches all links whose names begin with it, as nft's "weirp*" does.
func IIFName(op expr.CmpOp, name []byte) []expr.Any {
	return []expr.Any{LoadIIFName(unix.NFT_REG_1), &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: name}}
}

// LinkName returns a link's name in the form in which the kernel compares it: 16 bytes, filled with zeros.
func LinkName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// Equal returns a match. The expression load puts a part or property of the packet into register 1, which must then
// equal the given value.
func Equal(load expr.Any, value []byte) []expr.Any { return Compare(load, expr.CmpOpEq, value) }

// Compare returns a match. The expression load puts a part or property of the packet into register 1, and the
// operator op compares the register with the given value.
func Compare(load expr.Any, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: value}}
}

// LoadIIFName returns the expression that puts the name of the incoming link into a register.
func LoadIIFName(register uint32) expr.Any { return LoadMeta(expr.MetaKeyIIFNAME, register) }

// LoadMeta returns the expression that puts a property of the packet, such as its protocol, into a register. key names
// the property.
func LoadMeta(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

// LoadPayload returns the expression that puts bytes of the packet into a register. base names a header of the
// packet. offset is the number of bytes from the beginning of this header, and length the number of bytes to load.
func LoadPayload(base expr.PayloadBase, offset, length, register uint32) expr.Any {
	return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
}

// Join joins parts into one rule. The kernel evaluates a part only if the packet matches all parts before it.
func Join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }
