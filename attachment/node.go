// Package attachment makes, checks and ends attachments: ADD, CHECK, DEL, GC, and the end of attachments that
// no runtime deletes. It uses no CNI types: the plugin translates calls, results and errors.
//
// On the node an attachment has its record, guard entry, places in sets, link, neighbour entries, connections
// and addresses.
//
// Invariants:
//   - The record is written before all other parts and removed after them, and each step can be repeated. So if a
//     process is killed, Reap, GC or a second DEL removes the rest. There is one exception: preventBypass sets options
//     of another plugin's bridge and link before the record is written, and nothing unsets them (see chained.go).
//   - Unless enforcement is off, packets pass a link that weir made only after the agent has enrolled the pod.
//   - An address is released only after the guard forbids the port to send, and no set has the address.
//   - Addresses are assigned and released, and records are removed, under the node's lock. A DEL that has the lock
//     also ends the attachments whose DELs wait for the lock.
package attachment

import "net/netip"

// Node makes, checks and ends the attachments of the node that the process runs on.
type Node struct {
	Sets PodSets
}

// NewNode returns the node that the process runs on, with the sets of the agent's backend.
func NewNode() Node { return Node{Sets: podSets{}} }

// PodSets are the packet filter's sets of this node's pods. New connections of a pod in the set of all pods are dropped
// unless the pod's classes allow them. Each backend has an implementation of PodSets. All methods can be repeated.
type PodSets interface {
	// Name returns the name of the set of all pods, in the address's family. The name is for messages.
	Name(addr netip.Addr) string
	// Deny puts the addresses into the sets of all pods, and makes missing sets. It writes the parameter pod as the
	// comment of each set entry.
	Deny(pod string, addrs ...netip.Addr) error
	// Remove takes the addresses out of the sets of all pods, and out of no other set. It is for strays: addresses in
	// these sets that belong to no attachment.
	Remove(addrs ...netip.Addr) error
	// Purge takes the addresses out of every set that may have entries of a pod. After Purge, the addresses can be
	// released: a later pod inherits nothing.
	Purge(addrs ...netip.Addr) error
	// PurgeEarly may do the work of Purge before the pod's link is deleted, if that saves time. The caller must make
	// sure that no other process can release the addresses. Once the link is deleted, the caller must call later() and
	// then Purge.
	PurgeEarly(addrs ...netip.Addr) (later func())
	// Contains reports whether the address is in the set of all pods.
	Contains(addr netip.Addr) (bool, error)
	// InUse reports whether a rule looks addresses up in the set of all pods of the address's family.
	InUse(addr netip.Addr) (bool, error)
	// Check returns an error for each address that isn't in the set of all pods, or that is in no ingress class or in
	// no egress class.
	Check(addrs ...netip.Addr) error
	// Addresses returns the addresses in all sets that have only pods of this node.
	Addresses() ([]netip.Addr, error)
}
