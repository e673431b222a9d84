//go:build linux

package nflog

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// These are attributes of include/uapi/linux/netfilter/nfnetlink_log.h, and the sizes of struct nfgenmsg and struct
// nlattr.
const (
	attrHeader     = 1
	attrIndev      = 4
	attrOutdev     = 5
	attrPhysIndev  = 6
	attrPayload    = 9
	attrPrefix     = 10
	attrSeq        = 12
	sizeofNfgenmsg = 4
	sizeofAttr     = 4
)

// Packet is a packet that the kernel has copied. Its slices are parts of the Reader's buffer.
type Packet struct {
	Prefix    []byte
	EtherType uint16
	Payload   []byte
	// In and Out are the indexes of the links by which the packet came in and would have gone out; 0 means none. Port
	// is the index of the bridge port by which a frame came in.
	In, Out, Port uint32

	number uint32
}

func (p *Packet) parse(b []byte) bool {
	if len(b) < sizeofNfgenmsg {
		return false
	}
	*p = Packet{}
	numbered := false
	for b = b[sizeofNfgenmsg:]; len(b) >= sizeofAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < sizeofAttr || size > len(b) {
			return false
		}
		value := b[sizeofAttr:size:size]
		switch binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) {
		case attrHeader:
			if len(value) >= 2 {
				p.EtherType = binary.BigEndian.Uint16(value)
			}
		case attrIndev:
			p.In = number(value)
		case attrOutdev:
			p.Out = number(value)
		case attrPhysIndev:
			p.Port = number(value)
		case attrPayload:
			p.Payload = value
		case attrPrefix:
			p.Prefix, _, _ = bytes.Cut(value, []byte{0})
		case attrSeq:
			p.number, numbered = number(value), len(value) == 4
		}
		b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return numbered
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
