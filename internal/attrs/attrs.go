// Package attrs reads and writes netlink attributes. The netlink library's function for reading, nl.ParseAttributes, is
// slow: it starts a goroutine for each list.
//
// Invariants:
//   - A value is a part of the given data. Nothing is copied.
//   - If the last attribute is cut off, the list ends before it, without an error.
package attrs

import (
	"bytes"
	"encoding/binary"
	"iter"
	"maps"

	"golang.org/x/sys/unix"
)

const sizeofHeader = 4

// In yields the type and the value of each attribute in the data. The type comes without flags such as NLA_F_NESTED. In
// stops at an attribute that is cut off.
func In(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(kind uint16, value []byte) bool) {
		for len(data) >= sizeofHeader {
			length := int(binary.NativeEndian.Uint16(data))
			kind := binary.NativeEndian.Uint16(data[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if length < sizeofHeader || length > len(data) || !yield(kind, data[sizeofHeader:length:length]) {
				return
			}
			aligned := (length + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
			data = data[min(aligned, len(data)):]
		}
	}
}

// Append appends an attribute, padded to a multiple of four bytes.
func Append(to []byte, kind uint16, value ...byte) []byte {
	return pad(append(header(to, kind, len(value)), value...), len(value))
}

// AppendText appends an attribute with a text and a zero byte.
func AppendText(to []byte, kind uint16, text string) []byte {
	return pad(append(append(header(to, kind, len(text)+1), text...), 0), len(text)+1)
}

// Nest appends an attribute that contains other attributes. The function within must append these.
func Nest(to []byte, kind uint16, within func(to []byte) []byte) []byte {
	start := len(to)
	to = within(header(to, kind|unix.NLA_F_NESTED, 0))
	binary.NativeEndian.PutUint16(to[start:], uint16(len(to)-start))
	return to
}

func header(to []byte, kind uint16, length int) []byte {
	to = binary.NativeEndian.AppendUint16(to, uint16(sizeofHeader+length))
	return binary.NativeEndian.AppendUint16(to, kind)
}

func pad(to []byte, length int) []byte {
	return append(to, make([]byte, -length&(unix.NLA_ALIGNTO-1))...)
}

// Map returns the attributes in the data by their types. Of several attributes of one type, it has the last.
func Map(data []byte) map[uint16][]byte { return maps.Collect(In(data)) }

// Text returns the value of an attribute as a text, without the zero bytes at its end.
func Text(value []byte) string { return string(bytes.TrimRight(value, "\x00")) }
