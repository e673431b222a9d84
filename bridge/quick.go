package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/weir-net/weir/conf"
)

// quickSet is the set in which the guard's first rule looks frames up. Its key is short and its size is fixed, so a
// look-up takes little time. A frame whose sender isn't in quickSet meets the guard's other rules.
const quickSet = "links4"

// quickEntries is how many entries quickSet can have. Further ports have no entries in quickSet, so their frames
// take a little longer.
const quickEntries = 8192

// quickSenders returns quickSet. It sets no flag for concatenations: with that flag, the library doesn't send the
// size.
func quickSenders() *nftables.Set {
	return &nftables.Set{
		Table: bridgeTable(), Name: quickSet, Size: quickEntries,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeEtherAddr, nftables.TypeIPAddr),
	}
}

// quickKey returns the key of an element in quickSet: the link's index, the MAC padded to 8 bytes, and the address.
func quickKey(index int, mac net.HardwareAddr, addr netip.Addr) []byte {
	k := binary.NativeEndian.AppendUint32(make([]byte, 0, 4+8+4), uint32(index))
	k = append(k, mac...)
	return append(append(k, make([]byte, 8-len(mac))...), addr.AsSlice()...)
}

// quick returns the sender's elements in quickSet: none if the port's link doesn't exist, because it then has no
// index.
func (s Sender) quick() []nftables.SetElement {
	index, err := indexOf(s.HostIf)
	if index == 0 || err != nil || len(s.MAC) > 8 {
		return nil
	}
	var all []nftables.SetElement
	for _, a := range s.Addresses {
		if conf.FamilyOf(a.Addr) == conf.IPv4 {
			all = append(all, nftables.SetElement{Key: quickKey(index, s.MAC, a.Addr)})
		}
	}
	return all
}

// quickOf returns the present elements of quickSet (in has) that have the MAC and the address of an element of
// senders4 (in all).
func quickOf(has senderKeys, all elements) []nftables.SetElement {
	senders := map[string]bool{}
	for _, e := range all[guardSets[conf.IPv4]] {
		senders[senderIn(guardSets[conf.IPv4], string(e.Key))] = true
	}
	return slices.DeleteFunc(elementsOf(has)[quickSet], func(e nftables.SetElement) bool {
		return !senders[senderIn(quickSet, string(e.Key))]
	})
}

// senderIn returns the bytes of the MAC and the address in a key of one of the guard's sets.
func senderIn(set, key string) string {
	prefix := 16 // the length of a link's name in a key
	if set == quickSet {
		prefix = 4
	}
	return key[min(prefix, len(key)):]
}
