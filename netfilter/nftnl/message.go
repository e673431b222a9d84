// Package nftnl writes and reads tables, chains, rules, sets and maps of nf_tables over netlink. It writes the messages
// itself, because the library github.com/google/nftables doesn't tell which requests of a transaction the kernel
// refuses.
//
// Invariants:
//   - The package knows nothing of policies.
//   - The kernel carries out a Batch as a whole or not at all. A RefusedError names the refused requests.
//   - If a list changes while it is read, it is read again. It never counts as a shorter list.
//   - The calls of PodSets can be repeated.
package nftnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

type Table struct {
	Family uint8 // such as unix.NFPROTO_IPV4
	Name   string
}

type attrs []byte

func (a attrs) put(kind uint16, value []byte) attrs { return netattrs.Append(a, kind, value...) }

func (a attrs) text(kind uint16, value string) attrs { return a.put(kind, append([]byte(value), 0)) }

func (a attrs) number(kind uint16, value uint32) attrs {
	return a.put(kind, binary.BigEndian.AppendUint32(nil, value))
}

type message struct {
	kind, flags uint16
	family      uint8
	body        attrs
	about       any // the caller's name for the request
}

const sizeofGenmsg = 4

func (m message) append(to []byte, seq uint32) []byte {
	to = binary.NativeEndian.AppendUint32(to, uint32(unix.SizeofNlMsghdr+sizeofGenmsg+len(m.body)))
	to = binary.NativeEndian.AppendUint16(to, m.kind)
	to = binary.NativeEndian.AppendUint16(to, unix.NLM_F_REQUEST|m.flags)
	to = binary.NativeEndian.AppendUint32(to, seq)
	to = binary.NativeEndian.AppendUint32(to, 0)
	to = append(to, m.family, unix.NFNETLINK_V0, 0, 0)
	if m.kind == unix.NFNL_MSG_BATCH_BEGIN || m.kind == unix.NFNL_MSG_BATCH_END {
		binary.BigEndian.PutUint16(to[len(to)-2:], unix.NFNL_SUBSYS_NFTABLES)
	}
	return append(to, m.body...)
}

func comment(kind byte, text string) []byte {
	if text == "" {
		return nil
	}
	return userdata(nil, kind, append([]byte(text), 0))
}

func userdata(to []byte, kind byte, value []byte) []byte {
	return append(append(to, kind, byte(len(value))), value...)
}

func userdataIn(data []byte, kind byte) []byte {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		if data[0] == kind {
			return data[2 : 2+int(data[1])]
		}
		data = data[2+int(data[1]):]
	}
	return nil
}

// maxComment is the length in bytes of the longest comment that nft can read from a file (NFTNL_UDATA_COMMENT_MAXLEN in
// libnftnl).
const maxComment = 127

// Comment shortens a text to maxComment bytes.
func Comment(text string) string {
	const end = " ..."
	if len(text) > maxComment {
		return text[:maxComment-len(end)] + end
	}
	return text
}
