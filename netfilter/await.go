package netfilter

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/policy/ruleset"
)

// Pods has the entries of the sets of all pods of this node, for both families.
type Pods []ruleset.Entries

// Has reports whether a packet from or to one of the pods may match the element. An element without an address matches
// packets from and to all pods.
func (p Pods) Has(e ruleset.Element) bool {
	return !e.Prefix.IsValid() ||
		slices.ContainsFunc(p, func(pods ruleset.Entries) bool { return pods.HasAddressIn(e.Prefix.Masked()) })
}

// AwaitPackets waits until the kernel has finished all packets that it is handling now. This takes about 15 ms. A
// packet that is on its way through the rules meets the rules that existed when it met its first rule, but each of its
// look-ups finds the newest elements of a set. So if a packet is on its way during two changes of sets, it may pass
// although the state before both changes denies it, and the state after them too. AwaitPackets between the two changes
// prevents that.
//
// The kernel's membarrier waits until all processors have finished the packets that they are handling (membarrier(2),
// MEMBARRIER_CMD_GLOBAL). If processors run without clock ticks (kernel parameter nohz_full), the kernel refuses
// membarrier, and AwaitPackets doesn't wait.
func AwaitPackets() {
	const global = 1
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}
