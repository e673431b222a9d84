package nftnl

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	netattrs "github.com/weir-net/weir/internal/attrs"
)

type Layout uint8

const (
	Address Layout = iota
	Network
	AddressPort
	AddressLink
	Link
	Port
	Verdicts
	AddressPair // an address as source and destination of a packet, so the same address twice
	InnerPair   // an address as source of an ICMP error, and as destination of the packet inside the error
)

// layouts has nft's names for the layouts in a table for IPv4.
var layouts = [...]string{
	Address: "ipv4_addr", Network: "ipv4_addr, flags interval", AddressPort: "ipv4_addr . inet_proto . inet_service",
	AddressLink: "ipv4_addr . ifname", Link: "ifname", Port: "inet_service", Verdicts: "ipv4_addr : verdict",
	AddressPair: "ipv4_addr . ipv4_addr", InnerPair: "ip saddr . @th,192,32",
}

// String returns nft's name for the type of the elements in a table for IPv4.
func (l Layout) String() string { return layouts[l] }

// In returns nft's name for the type of the elements in a table for the family.
func (l Layout) In(f conf.Family) string {
	if f == conf.IPv6 {
		return inIPv6.Replace(l.String())
	}
	return l.String()
}

var inIPv6 = strings.NewReplacer("ipv4_addr", "ipv6_addr", "ip saddr . @th,192,32", "ip6 saddr . @th,256,128")

// Set is a set or map without its elements. The family of its table is the family of its addresses.
type Set struct {
	Name    string
	Layout  Layout
	Comment string
}

// Element is an element of a set. The set's layout decides which fields are used.
type Element struct {
	Prefix  netip.Prefix
	Proto   uint8
	Port    uint16
	Link    string
	Verdict Verdict
	Comment string
}

// These are nft's numbers for types of keys (nftables, include/datatype.h). In the type of a concatenation, each number
// has six bits.
const (
	typeInteger = 4
	typeIPv4    = 7
	typeIPv6    = 8
	typeProto   = 12
	typeService = 13
	typeIfname  = 41
	typeBits    = 6
)

const (
	ifnameLen   = unix.IFNAMSIZ
	registerLen = 4
)

func (l Layout) key(family uint8) (kind, length, flags uint32) {
	address, size := uint32(typeIPv4), uint32(4)
	if family == unix.NFPROTO_IPV6 {
		address, size = typeIPv6, 16
	}
	pair := func(second uint32) uint32 { return address<<typeBits | second }
	switch l {
	case Network:
		return address, size, unix.NFT_SET_INTERVAL
	case AddressPort:
		return pair(typeProto)<<typeBits | typeService, size + 2*registerLen, 0
	case AddressLink:
		return pair(typeIfname), size + ifnameLen, 0
	case Link:
		return typeIfname, ifnameLen, 0
	case Port:
		return typeService, 2, 0
	case Verdicts:
		return address, size, unix.NFT_SET_MAP
	case AddressPair:
		return pair(address), 2 * size, 0
	case InnerPair:
		return pair(typeInteger), 2 * size, 0
	}
	return address, size, 0
}

func layoutOf(family uint8, kind, length, flags uint32) (Layout, bool) {
	for l := Address; l <= InnerPair; l++ {
		if k, n, f := l.key(family); k == kind && n == length && f == flags {
			return l, true
		}
	}
	return 0, false
}

// AddSet makes the set. If a set of this name has other properties, the kernel refuses the request.
//
// Equivalent to: nft add set FAMILY TABLE SET { type TYPE; comment "COMMENT"; } (add map for Verdicts)
func (b *Batch) AddSet(t Table, s Set, about any) {
	kind, length, flags := s.Layout.key(t.Family)
	a := attrs{}.text(unix.NFTA_SET_TABLE, t.Name).text(unix.NFTA_SET_NAME, s.Name).number(unix.NFTA_SET_FLAGS, flags).
		number(unix.NFTA_SET_KEY_TYPE, kind).number(unix.NFTA_SET_KEY_LEN, length)
	if s.Layout == Verdicts {
		a = a.number(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT).number(unix.NFTA_SET_DATA_LEN, 0)
	}
	a = a.number(unix.NFTA_SET_ID, uint32(len(b.messages)+1)).put(unix.NFTA_SET_USERDATA, s.userdata(t.Family))
	b.request(unix.NFT_MSG_NEWSET, t, unix.NLM_F_CREATE, about, a)
}

func (s Set) userdata(family uint8) []byte {
	const none, host, big = 0, 1, 2 // enum byteorder (nftables, include/datatype.h)
	order := byte(big)
	switch s.Layout {
	case Link:
		order = host
	case AddressPort, AddressLink, AddressPair, InnerPair:
		order = none
	}
	data := userdata(nil, byteOrderOfASet, []byte{order, 0, 0, 0})
	if s.Layout == Verdicts {
		data = userdata(data, dataByteOrderOfSet, []byte{none, 0, 0, 0})
	}
	if s.Layout == InnerPair {
		data = userdata(data, typeOfASetsKey, typeofInnerPair(family))
	}
	return append(data, comment(commentOfASet, s.Comment)...)
}

// typeofInnerPair returns the text "typeof ip saddr . @th,192,32" in the form in which nft stores it with a set (for
// IPv6 "ip6 saddr . @th,256,128"). See concat_expr_build_udata and payload_expr_build_udata of nftables.
func typeofInnerPair(family uint8) []byte {
	u32 := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	list := func(values ...[]byte) (all []byte) {
		for i, v := range values {
			all = userdata(all, byte(i), v)
		}
		return all
	}
	const concat, payload, transport = 13, 7, 3 // EXPR_CONCAT, EXPR_PAYLOAD, PROTO_BASE_TRANSPORT_HDR
	header, field, offset, length := uint32(12), uint32(11), uint32(192), uint32(32)
	if family == unix.NFPROTO_IPV6 {
		header, field, offset, length = 13, 8, 256, 128
	}
	part := func(values ...[]byte) []byte { return list(u32(payload), list(values...)) }
	return list(u32(concat), list(part(u32(header), u32(field)),
		part(u32(0), u32(0), u32(transport), u32(offset), u32(length))))
}

// DeleteSet deletes the set with its elements. No rule may use it.
//
// Equivalent to: nft delete set FAMILY TABLE SET
func (b *Batch) DeleteSet(t Table, name string) {
	b.request(unix.NFT_MSG_DELSET, t, 0, nil, attrs{}.text(unix.NFTA_SET_TABLE, t.Name).text(unix.NFTA_SET_NAME, name))
}

// maxElements limits the elements in one message, in bytes. An attribute can't be longer than 64 KiB.
const maxElements = 60 << 10

// ElementOf is the value of Refusal.About if the kernel has refused a single element.
type ElementOf struct {
	About   any
	Element Element
}

// AddElements adds the elements to the set. Networks must not overlap. If the parameter alone is true, each element has
// its own request, so that a refusal names the element (ElementOf).
//
// Equivalent to: nft add element FAMILY TABLE SET { KEY comment "COMMENT", … }
func (b *Batch) AddElements(t Table, s Set, elements []Element, about any, alone bool) {
	if !alone {
		b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, t, s, elements, about)
		return
	}
	for i, e := range elements {
		b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, t, s, elements[i:i+1], ElementOf{about, e})
	}
}

// DeleteElements deletes the elements from the set. All of them must exist.
//
// Equivalent to: nft delete element FAMILY TABLE SET { KEY, … }
func (b *Batch) DeleteElements(t Table, s Set, elements []Element) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, t, s, elements, nil)
}

// FlushSet deletes all elements of the set.
//
// Equivalent to: nft flush set FAMILY TABLE SET
func (b *Batch) FlushSet(t Table, name string) {
	b.request(unix.NFT_MSG_DELSETELEM, t, 0, nil,
		attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, name))
}

func (b *Batch) elements(kind int, flags uint16, t Table, s Set, elements []Element, about any) {
	var list attrs
	send := func() {
		a := attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		b.request(kind, t, flags, about, a.put(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
		list = nil
	}
	for _, e := range elements {
		for _, one := range s.Layout.encode(e, kind == unix.NFT_MSG_NEWSETELEM) {
			list = list.put(unix.NFTA_LIST_ELEM, one)
		}
		if len(list) > maxElements {
			send()
		}
	}
	if len(list) > 0 {
		send()
	}
}

// encode returns the element in the kernel's form. A network becomes two elements: its first address, and the first
// address behind the network, if there is one. If whole is false, the elements have only keys, as for a deletion.
func (l Layout) encode(e Element, whole bool) []attrs {
	first := attrs{}.put(unix.NFTA_SET_ELEM_KEY, value(l.keyOf(e)))
	if whole && l == Verdicts {
		first = first.put(unix.NFTA_SET_ELEM_DATA, e.Verdict.encode())
	}
	var data []byte
	if whole {
		data = comment(commentOfAnObject, e.Comment)
	}
	var all []attrs
	if l == Network {
		if end := netipx.PrefixLastIP(e.Prefix).Next(); end.IsValid() {
			flags := attrs{}.number(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
			all = append(all, flags.put(unix.NFTA_SET_ELEM_KEY, value(end.AsSlice())))
		} else if whole {
			data = userdata(data, flagsOfAnElement, []byte{1, 0, 0, 0}) // SET_ELEM_F_INTERVAL_OPEN, which nft needs
		}
	}
	if len(data) > 0 {
		first = first.put(unix.NFTA_SET_ELEM_USERDATA, data)
	}
	return append([]attrs{first}, all...)
}

func (l Layout) keyOf(e Element) []byte {
	link := func() []byte { return append([]byte(e.Link), make([]byte, max(ifnameLen-len(e.Link), 0))...) }
	switch l {
	case Port:
		return binary.BigEndian.AppendUint16(nil, e.Port)
	case Link:
		return link()
	}
	key := e.Prefix.Addr().AsSlice()
	switch l {
	case AddressPort:
		key = append(key, e.Proto, 0, 0, 0)
		key = append(binary.BigEndian.AppendUint16(key, e.Port), 0, 0)
	case AddressLink:
		key = append(key, link()...)
	case AddressPair, InnerPair:
		key = append(key, key...)
	}
	return key
}

// Element returns the element whose key is at the beginning of the registers. ok is false if the registers have no
// valid key of this layout.
func (l Layout) Element(family uint8, registers []byte) (e Element, ok bool) {
	_, length, _ := l.key(family)
	if len(registers) < int(length) {
		return e, false
	}
	return l.parse(family, registers[:length])
}

func (l Layout) parse(family uint8, key []byte) (e Element, ok bool) {
	_, length, _ := l.key(family)
	if len(key) != int(length) {
		return e, false
	}
	link := func(b []byte) string {
		for i, c := range b {
			if c == 0 {
				return string(b[:i])
			}
		}
		return string(b)
	}
	switch l {
	case Port:
		e.Port = binary.BigEndian.Uint16(key)
	case Link:
		e.Link = link(key)
	default:
		size := 4
		if family == unix.NFPROTO_IPV6 {
			size = 16
		}
		addr, _ := netip.AddrFromSlice(key[:size])
		e.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		switch rest := key[size:]; l {
		case AddressPort:
			e.Proto, e.Port = rest[0], binary.BigEndian.Uint16(rest[registerLen:])
		case AddressLink:
			e.Link = link(rest)
		}
	}
	return e, string(l.keyOf(e)) == string(key)
}

func valueIn(data []byte) []byte {
	for kind, value := range netattrs.In(data) {
		if kind == unix.NFTA_DATA_VALUE {
			return value
		}
	}
	return nil
}
