package nftnl

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

type Rule struct {
	Expressions Expressions
	Comment     string
}

// Sum identifies the expressions and the comment of a rule. It is valid only within this process.
type Sum uint64

var seed = maphash.MakeSeed()

// Sum returns the rule's Sum. A rule that was read from the kernel has the same Sum as the rule that was written.
// Values of counters don't matter.
func (r Rule) Sum() Sum { return sum(r.Expressions, comment(commentOfAnObject, r.Comment)) }

func sum(expressions Expressions, userdata []byte) Sum {
	var all []byte
	number := func(n int) { all = binary.BigEndian.AppendUint32(all, uint32(n)) }
	for name, values := range expressions.All() {
		number(len(name))
		all = append(all, name...)
		if string(name) == "counter" {
			continue
		}
		type attr struct {
			kind  uint16
			value []byte
		}
		var attributes []attr
		for kind, value := range netattrs.In(values) {
			if len(value) != 4 || binary.BigEndian.Uint32(value) != 0 {
				attributes = append(attributes, attr{kind, value})
			}
		}
		slices.SortFunc(attributes, func(a, b attr) int { return int(a.kind) - int(b.kind) })
		number(len(attributes))
		for _, a := range attributes {
			number(int(a.kind))
			number(len(a.value))
			all = append(all, a.value...)
		}
	}
	number(len(all)) // the length separates the expressions from the user data
	return Sum(maphash.Bytes(seed, append(all, userdata...)))
}

// Expressions are the expressions of a rule, in the kernel's form. Each exported method except All appends an
// expression. Registers have the numbers 0 to 15, and each has 32 bits.
type Expressions []byte

// All yields the name and the attributes of each expression, in order. They are parts of e.
func (e Expressions) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, values []byte) bool) {
		for _, one := range netattrs.In(e) {
			var name, values []byte
			for kind, value := range netattrs.In(one) {
				switch kind {
				case unix.NFTA_EXPR_NAME:
					name = bytes.TrimRight(value, "\x00")
				case unix.NFTA_EXPR_DATA:
					values = value
				}
			}
			if !yield(name, values) {
				return
			}
		}
	}
}

func (e Expressions) add(name string, data attrs) Expressions {
	one := attrs{}.text(unix.NFTA_EXPR_NAME, name)
	if name != "notrack" {
		one = one.put(unix.NFTA_EXPR_DATA, data)
	}
	return Expressions(attrs(e).put(unix.NFTA_LIST_ELEM, one))
}

func register(n int) uint32 {
	if n%4 == 0 {
		return uint32(unix.NFT_REG_1 + n/4)
	}
	return uint32(unix.NFT_REG32_00 + n)
}

func value(data []byte) attrs { return attrs{}.put(unix.NFTA_DATA_VALUE, data) }

// Meta loads a property of the packet, such as unix.NFT_META_L4PROTO, into a register.
func (e Expressions) Meta(key uint32, to int) Expressions {
	return e.add("meta", attrs{}.number(unix.NFTA_META_KEY, key).number(unix.NFTA_META_DREG, register(to)))
}

// Ct loads a property of the packet's connection, such as unix.NFT_CT_STATE, into a register.
func (e Expressions) Ct(key uint32, to int) Expressions {
	return e.add("ct", attrs{}.number(unix.NFTA_CT_KEY, key).number(unix.NFTA_CT_DREG, register(to)))
}

// SetCt writes a register to a property of the packet's connection.
func (e Expressions) SetCt(key uint32, from int) Expressions {
	return e.add("ct", attrs{}.number(unix.NFTA_CT_KEY, key).number(unix.NFTA_CT_SREG, register(from)))
}

// Payload loads bytes of the packet into a register. The offset counts from a header such as
// unix.NFT_PAYLOAD_NETWORK_HEADER.
func (e Expressions) Payload(header uint32, offset, length uint32, to int) Expressions {
	return e.add("payload", attrs{}.number(unix.NFTA_PAYLOAD_DREG, register(to)).number(unix.NFTA_PAYLOAD_BASE, header).
		number(unix.NFTA_PAYLOAD_OFFSET, offset).number(unix.NFTA_PAYLOAD_LEN, length))
}

// Compare lets the rule continue only if the comparison of the first register with the data is true. op is, for
// example, unix.NFT_CMP_EQ.
func (e Expressions) Compare(op uint32, data []byte) Expressions {
	return e.add("cmp", attrs{}.number(unix.NFTA_CMP_SREG, register(0)).number(unix.NFTA_CMP_OP, op).
		put(unix.NFTA_CMP_DATA, value(data)))
}

// And clears the bits of the first register that aren't in the mask.
func (e Expressions) And(mask []byte) Expressions {
	return e.add("bitwise", attrs{}.number(unix.NFTA_BITWISE_SREG, register(0)).
		number(unix.NFTA_BITWISE_DREG, register(0)).number(unix.NFTA_BITWISE_LEN, uint32(len(mask))).
		put(unix.NFTA_BITWISE_MASK, value(mask)).put(unix.NFTA_BITWISE_XOR, value(make([]byte, len(mask)))))
}

// Lookup lets the rule continue only if the set contains the value of the first registers. If the parameter not is
// true, the rule continues only if the set doesn't contain the value.
func (e Expressions) Lookup(set string, not bool) Expressions {
	a := attrs{}.text(unix.NFTA_LOOKUP_SET, set).number(unix.NFTA_LOOKUP_SREG, register(0))
	if not {
		a = a.number(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
	}
	return e.add("lookup", a)
}

// LookupVerdict looks the value of the first registers up in the map, and gives the packet the map's verdict. If the
// map doesn't have the value, the rule doesn't match.
func (e Expressions) LookupVerdict(name string) Expressions {
	return e.add("lookup", attrs{}.text(unix.NFTA_LOOKUP_SET, name).number(unix.NFTA_LOOKUP_SREG, register(0)).
		number(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT))
}

// Load writes the data into the first register.
func (e Expressions) Load(data []byte) Expressions {
	return e.add("immediate", attrs{}.number(unix.NFTA_IMMEDIATE_DREG, register(0)).
		put(unix.NFTA_IMMEDIATE_DATA, value(data)))
}

func (e Expressions) Verdict(v Verdict) Expressions {
	return e.add("immediate", attrs{}.number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).
		put(unix.NFTA_IMMEDIATE_DATA, v.encode()))
}

// Counter counts the packets that match all expressions before it.
func (e Expressions) Counter() Expressions {
	none := make([]byte, 8)
	return e.add("counter", attrs{}.put(unix.NFTA_COUNTER_BYTES, none).put(unix.NFTA_COUNTER_PACKETS, none))
}

// Log copies the packet to the log group, with the prefix.
func (e Expressions) Log(group uint16, prefix string) Expressions {
	return e.add("log", attrs{}.put(unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, group)).
		text(unix.NFTA_LOG_PREFIX, prefix))
}

// Masquerade changes the packet's source to the node's address, with a random port.
func (e Expressions) Masquerade() Expressions {
	const fullyRandom = 1 << 4 // NF_NAT_RANGE_PROTO_RANDOM_FULLY
	return e.add("masq", attrs{}.number(unix.NFTA_MASQ_FLAGS, fullyRandom))
}

// InPort lets the rule continue only if the packet came in by this bridge port. The kernel needs nft_compat and
// xt_physdev.
//
// Equivalent to: iptables -m physdev --physdev-in PORT
func (e Expressions) InPort(port string) Expressions {
	info := make([]byte, 72) // struct xt_physdev_info (include/uapi/linux/netfilter/xt_physdev.h), aligned
	const mask, bitmask, in = unix.IFNAMSIZ, 4*unix.IFNAMSIZ + 1, 1
	copy(info[:unix.IFNAMSIZ-1], port)
	for i := range min(len(port)+1, unix.IFNAMSIZ) {
		info[mask+i] = 0xff
	}
	info[bitmask] = in
	return e.add("match", attrs{}.text(unix.NFTA_MATCH_NAME, "physdev").number(unix.NFTA_MATCH_REV, 0).
		put(unix.NFTA_MATCH_INFO, info))
}

// Verdict says what happens to a packet: Code is a value such as unix.NFT_RETURN, and Chain is the target of a jump or
// goto.
type Verdict struct {
	Code  int32
	Chain string
}

func (v Verdict) encode() attrs {
	a := attrs{}.number(unix.NFTA_VERDICT_CODE, uint32(v.Code))
	if v.Chain != "" {
		a = a.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	return attrs{}.put(unix.NFTA_DATA_VERDICT, a)
}

// VerdictIn returns the verdict in the attributes of an expression "immediate". ok is false if the expression loads
// other data.
func VerdictIn(immediate []byte) (v Verdict, ok bool) {
	for kind, value := range netattrs.In(immediate) {
		if kind == unix.NFTA_IMMEDIATE_DATA {
			v, ok = parseVerdict(value)
		}
	}
	return v, ok
}

func parseVerdict(data []byte) (v Verdict, ok bool) {
	for kind, value := range netattrs.In(data) {
		if kind != unix.NFTA_DATA_VERDICT {
			continue
		}
		ok = true
		for kind, value := range netattrs.In(value) {
			switch {
			case kind == unix.NFTA_VERDICT_CODE && len(value) == 4:
				v.Code = int32(binary.BigEndian.Uint32(value))
			case kind == unix.NFTA_VERDICT_CHAIN:
				v.Chain = netattrs.Text(value)
			}
		}
	}
	return v, ok
}
