package ruleset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weir-net/weir/conf"
)

// SetKind says what the entries of a set are.
type SetKind string

// The kinds.
const (
	Addresses    SetKind = "addresses"
	Networks     SetKind = "networks"
	AddressPorts SetKind = "addresses with ports"
	// Ports sets are of both families: IPv4 stands for both.
	Ports SetKind = "ports"
	// AddressLinks sets hold addresses and networks, each with the link that its packets come in by.
	AddressLinks SetKind = "addresses with links"
)

// SetRole says in which order a set and the rules that use it change, so that no packet passes on the way that neither
// the old nor the new ruleset allows.
type SetRole int

const (
	// Peers are allowed by some rule: entries that leave are deleted before the rules change, new ones are added after.
	Peers SetRole = iota
	// Checked entries are those whose packets the rules check at all: new ones are added before the rules change, entries
	// that leave are deleted after.
	Checked
	// Attached entries are checked, and the addresses of this node's attachments. One that comes has no connections, and
	// those of one that has left are forgotten before another pod has the address (conntrack.Delete).
	Attached
	// Members are sent to their class by the first rule of the chain Set.Dispatch that finds them in its set. Those that
	// change class do so in one step, or are in no class in between.
	Members
)

// Set is a named set of addresses or ports.
type Set struct {
	Name   string
	Kind   SetKind
	Family conf.Family // of all its entries
	Role   SetRole
	// Dispatch is the chain that goes by the set, if its role is Members.
	Dispatch string
	// Opens says that the set and each of its entries are there to allow packets: without them packets are dropped. So
	// the rest of the ruleset holds if the kernel refuses the set.
	Opens   bool
	Entries []Entry // in order, no two with the same element
}

// Entry of a set, with the words that an operator reads beside it.
type Entry struct {
	Element
	Comment string
}

// Element of a set: an address or network; with a port in AddressPorts, with a link in AddressLinks. In Ports it is a
// port alone.
type Element struct {
	Prefix netip.Prefix
	Proto  Protocol
	Port   uint16
	Link   string
}

// String writes the element as "10.0.0.1", "10.0.0.0/8", "10.0.0.1,tcp:80", "10.0.0.1,veth1" or "80".
func (e Element) String() string {
	switch {
	case !e.Prefix.IsValid():
		return strconv.Itoa(int(e.Port))
	case e.Link != "":
		return fmt.Sprintf("%s,%s", Element{Prefix: e.Prefix}, e.Link)
	case e.Port != 0:
		return fmt.Sprintf("%s,%s:%d", e.Prefix.Addr(), e.Proto, e.Port)
	case e.Prefix.IsSingleIP():
		return e.Prefix.Addr().String()
	}
	return e.Prefix.String()
}

// Compare orders elements by address, size of the network, protocol, port and link.
func (e Element) Compare(o Element) int {
	return cmp.Or(e.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(e.Proto, o.Proto), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Link, o.Link))
}

// Order sorts entries as a Set has them. Of several with one element it keeps the one whose comment sorts first.
func Order(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Element == b.Element })
}
