package ipset

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/attrs"
)

// List reads the set with its entries. If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset list NAME
func (h *Handle) List(name string) (Set, error) {
	var entries []Entry
	s, err := h.Each(name, func(e Entry, comment []byte) bool {
		e.Comment = string(comment)
		entries = append(entries, e)
		return true
	})
	s.Entries = entries
	return s, err
}

// Print returns the hash that List returns in Set.Print. It takes a small part of List's time, because it doesn't parse
// the entries. If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset list NAME | sha256sum
func (h *Handle) Print(name string) (uint64, error) {
	hash := h.newHash()
	err := h.lists.Dump(listRequest(name), func(msg []byte) bool {
		for kind, value := range attrs.In(msg[min(nl.SizeofNfgenmsg, len(msg)):]) {
			addTo(hash, kind, value)
		}
		return true
	})
	return hash.Sum64(), wrap(err, "list ipset %s", name)
}

func (h *Handle) newHash() *maphash.Hash {
	var hash maphash.Hash
	hash.SetSeed(h.seed)
	return &hash
}

// addTo adds an attribute of a message to the hash. It leaves out the attributes that each message repeats, because the
// kernel may divide the same list into more or fewer messages.
func addTo(hash *maphash.Hash, kind uint16, value []byte) {
	if kind != nl.IPSET_ATTR_PROTOCOL && kind != nl.IPSET_ATTR_SETNAME {
		_, _ = hash.Write(value)
	}
}

// Each reads the set, and calls each(e, comment) for every entry. Set.Entries stays empty. The comment is valid until
// each() returns. If each() returns false, Each ends without an error, and Set.Print covers only a part of the list.
// If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset list NAME
func (h *Handle) Each(name string, each func(e Entry, comment []byte) bool) (s Set, err error) {
	s.Name = name
	var broken error
	hash := h.newHash()
	err = h.lists.Dump(listRequest(name), func(msg []byte) bool {
		for kind, value := range attrs.In(msg[min(nl.SizeofNfgenmsg, len(msg)):]) {
			addTo(hash, kind, value)
			switch kind {
			case nl.IPSET_ATTR_TYPENAME:
				if s.Type != text(value) {
					s.Type = string(cut(value))
				}
			case nl.IPSET_ATTR_FAMILY:
				if len(value) == 1 {
					s.Family = families[value[0]]
				}
			case nl.IPSET_ATTR_DATA:
				flags := flagsOf(value)
				s.Comments = s.Comments || flags&nl.IPSET_FLAG_WITH_COMMENT != 0
				s.Marks = s.Marks || flags&nl.IPSET_FLAG_WITH_SKBINFO != 0
			case nl.IPSET_ATTR_ADT:
				for _, data := range attrs.In(value) {
					e, comment, ok := parseEntry(data, s.Type)
					if !ok {
						broken = fmt.Errorf("list ipset %s: an entry can't be understood", name)
					}
					if !ok || !each(e, comment) {
						return false
					}
				}
			}
		}
		return true
	})
	s.Print = hash.Sum64()
	if err != nil {
		return s, wrap(err, "list ipset %s", name)
	}
	return s, broken
}

func listRequest(name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	return req
}

func flagsOf(properties []byte) uint32 {
	for kind, value := range attrs.In(properties) {
		if kind == nl.IPSET_ATTR_CADT_FLAGS && len(value) == 4 {
			return binary.BigEndian.Uint32(value)
		}
	}
	return 0
}

func parseEntry(data []byte, setType string) (e Entry, comment []byte, ok bool) {
	var addr netip.Addr
	bits := -1
	for kind, value := range attrs.In(data) {
		switch kind {
		case nl.IPSET_ATTR_IP:
			for _, nested := range attrs.In(value) {
				addr, _ = netip.AddrFromSlice(nested)
			}
		case nl.IPSET_ATTR_CIDR:
			if len(value) == 1 {
				bits = int(value[0])
			}
		case nl.IPSET_ATTR_PORT:
			if len(value) == 2 {
				e.Port = binary.BigEndian.Uint16(value)
			}
		case nl.IPSET_ATTR_PROTO:
			if len(value) == 1 {
				e.Proto = protocolName(value[0])
			}
		case nl.IPSET_ATTR_IFACE:
			e.Link = text(value)
		case nl.IPSET_ATTR_COMMENT:
			comment = cut(value)
		case nl.IPSET_ATTR_SKBMARK:
			if len(value) == 8 {
				e.Mark = Mark{binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(value[4:])}
			}
		}
	}
	if setType == BitmapPort {
		return e, comment, true
	}
	if !addr.IsValid() {
		return e, comment, false
	}
	switch {
	case bits > 0:
	case setType == HashNetIface && addr.IsUnspecified():
		// For the network /0, the kernel sends the prefix length 0, or no prefix length.
		bits = 0
	default: // a single address
		bits = addr.BitLen()
	}
	e.Prefix = netip.PrefixFrom(addr, bits)
	return e, comment, true
}

func cut(value []byte) []byte {
	head, _, _ := bytes.Cut(value, []byte{0})
	return head
}

func text(value []byte) string { return string(cut(value)) }
