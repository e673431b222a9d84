package ruleset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weir-net/weir/conf"
)

type SetKind string

// In sets of the kinds Addresses and AddressPorts, each prefix is a single address.
const (
	Addresses    SetKind = "addresses"
	Networks     SetKind = "networks"
	AddressPorts SetKind = "addresses with ports"
	// Ports sets are used for both families. Their field Family is IPv4.
	Ports SetKind = "ports"
	// AddressLinks sets have addresses and networks, each with the link by which its packets come in.
	AddressLinks SetKind = "addresses with links"
)

// SetRole decides whether entries of a set are added, and deleted, before or after the rules change. With this order,
// a packet that both the old and the new ruleset drop is also dropped during the change.
type SetRole int

const (
	// Peers sets are for rules that allow packets: a packet that matches an entry may pass. Old entries are deleted
	// before the rules change, and new entries are added afterwards.
	Peers SetRole = iota
	// Checked sets have addresses whose packets are checked. New entries are added before the rules change, and old
	// ones are deleted afterwards.
	Checked
	// Attached sets are Checked sets with the addresses of this node's attachments.
	Attached
	// Members sets are class sets. When a pod changes its class, its address moves from one class set to another.
	// Either this is one step, or the pod is in no class (closed) for a moment.
	Members
)

type Set struct {
	Name   string
	Kind   SetKind
	Family conf.Family // the family of all entries; IPv4 for Ports sets
	Role   SetRole
	// Dispatch is the chain whose rule looks up a Members set.
	Dispatch string
	// Opens is true if rules use the set only to allow packets. If such a set or an entry of it is missing, all denied
	// packets stay denied, and some allowed packets are denied too.
	Opens   bool
	Entries Entries
}

// Entry is an element of a set, with a comment for people who list the set.
type Entry struct {
	Element
	Comment string
}

// Element is an address or a network. In AddressPorts sets it also has a port, and in AddressLinks sets a link. In
// Ports sets it has only a port.
type Element struct {
	Prefix netip.Prefix
	Proto  Protocol
	Port   uint16
	Link   string
}

// String returns the element as "10.0.0.1", "10.0.0.0/8", "10.0.0.1,tcp:80", "10.0.0.1,veth1" or "80".
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
	// Most elements differ in their addresses, and comparing the other fields takes longer.
	if c := e.Prefix.Addr().Compare(o.Prefix.Addr()); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(e.Proto, o.Proto), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Link, o.Link))
}

// Order sorts the entries as in a Set. If several entries have the same element, Order keeps the entry with the
// alphabetically first comment.
func Order(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Element == b.Element })
}

// ChangedPeers returns the sets with the role Peers whose entries differ from those in the earlier ruleset. ok is
// false if the chains, or other parts of the sets, also differ. Usually they don't, because pods start and end more
// often than policies change.
func (r Ruleset) ChangedPeers(earlier Ruleset) (changed []Set, ok bool) {
	if len(r.Sets) != len(earlier.Sets) || !sameChains(r.Chains, earlier.Chains) {
		return nil, false
	}
	for i, s := range r.Sets {
		was := earlier.Sets[i]
		if !s.like(&was) {
			return nil, false
		}
		if s.Entries.Same(was.Entries) {
			continue
		}
		if s.Role != Peers {
			return nil, false
		}
		changed = append(changed, s)
	}
	return changed, true
}

func sameChains(a, b []Chain) bool {
	return shared(a, b) || slices.EqualFunc(a, b, Chain.Equal)
}
