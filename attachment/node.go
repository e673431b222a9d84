// Package attachment makes, checks and ends attachments: ADD, CHECK, DEL, GC, and the end of attachments that no
// runtime deletes. It uses no CNI types: the plugin translates calls, results and errors.
//
// On the node an attachment has its record, guard entry, places in sets, link, neighbour entries, connections and
// addresses. These invariants hold at all times:
//
//   - The record is written before everything else and removed after it, and each step can be repeated. So whenever a
//     process is killed, Reap, GC or a second DEL finds the rest and removes it.
//   - Packets pass a link that weir made only after the addresses are in the set of all pods and the agent has enrolled
//     the pod, unless enforcement is off.
//   - An address is released only after the guard forbids the port to send and no set holds the address any more.
//   - Addresses are assigned and released, and records are removed, under the node's lock. DEL deletes the pod's link
//     before it takes the lock. Under the lock, a DEL also ends the attachments whose DELs wait for the lock.
package attachment

import "net/netip"

// Node makes, checks and ends the attachments of the node that the process runs on.
type Node struct {
	Sets PodSets
}

// NewNode returns the node that the process runs on. No other function chooses an implementation of PodSets.
func NewNode() Node { return Node{Sets: podSets{}} }

// PodSets are the packet filter's sets of this node's pods. If a pod is in the set of all pods, the rules drop its
// new connections unless its class allows them. The agent fills the other sets. Each backend of the packet filter
// has an implementation. All methods can be repeated.
type PodSets interface {
	// Name returns the name of the set of all pods of the address's family, for messages.
	Name(addr netip.Addr) string
	// Deny puts the addresses into the sets of all pods. It makes such a set if the set doesn't exist. pod is the
	// comment beside each address.
	Deny(pod string, addrs ...netip.Addr) error
	// Remove takes the addresses out of the sets of all pods, and out of no other set.
	Remove(addrs ...netip.Addr) error
	// Purge takes the addresses out of every set that holds pods.
	Purge(addrs ...netip.Addr) error
	// Holds reports whether the set of all pods holds the address.
	Holds(addr netip.Addr) (bool, error)
	// InUse reports whether a rule looks addresses up in the set of all pods of this address's family.
	InUse(addr netip.Addr) (bool, error)
	// Check returns an error for an enrolled pod's addresses. It names each set that lacks one of them.
	Check(addrs ...netip.Addr) error
	// Addresses returns the addresses in all sets that can only hold pods of this node.
	Addresses() ([]netip.Addr, error)
}
