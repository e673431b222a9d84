package conf

import "strings"

// This file has all names of weir's sets and chains, which the plugin, the agent, each backend and later versions of
// weir share. The kernel allows 31 bytes for the name of a set and 28 for that of an iptables chain, so a name has room
// for a hash of 16 letters. The constants are the names of IPv4's sets; Family.Set turns them into those of IPv6.

// Sets with fixed names.
const (
	// PodsSet has the addresses of every pod on the node: the kernel drops packets from and to these addresses unless a
	// class accepts them. The plugin adds a pod before it sets the pod's link up. A pod with enforcement off is added
	// later, by the agent, together with the class that accepts everything.
	PodsSet = ownSet + "pods"
	// NetworksSet has the networks that pods' addresses come from.
	NetworksSet = ownSet + "networks"
	// ChainedSet has the addresses of pods whose network another plugin made.
	ChainedSet = ownSet + "chained"
	// LinksSet has the links that another plugin made for one pod each. An entry is a link together with the network of
	// all addresses of the family.
	LinksSet = ownSet + "links"
	// SendersSet has the addresses of the pods behind these links, each with the pod's link.
	SendersSet = ownSet + "senders"
	// IngressMap and EgressMap have the pods of all classes of one direction, each with the number of its class. They take
	// the place of class sets where the kernel can look such numbers up.
	IngressMap = ownSet + "in"
	EgressMap  = ownSet + "eg"
	// TrialSet is made and destroyed again, to find out whether the kernel supports a kind of set.
	TrialSet = ownSet + "trial"
)

// Prefixes of the names of sets. A hash of the set's meaning follows, except for the two class sets that always exist:
// none (the policies allow nothing) and open (no policy isolates the pods).
const (
	ownSet = "weir-"
	// IngressClasses and EgressClasses are class sets: pods of this node that the same policies isolate.
	IngressClasses = ownSet + "in-"
	EgressClasses  = ownSet + "eg-"
	// SelectorSets have the pods that a peer's selectors match.
	SelectorSets = ownSet + "sel-"
	// BlockSets have the networks of a rule's ipBlocks.
	BlockSets = ownSet + "net-"
	// NamedPortSets have the pods with a named port, each with the port's number.
	NamedPortSets = ownSet + "port-"
	// MergedSets have the entries of several selector sets, and MergedBlockSets those of several block sets. Entries of
	// a merged set may have ports.
	MergedSets      = ownSet + "mrg-"
	MergedBlockSets = BlockSets + "mrg-"
	// NumberSets have port numbers only.
	NumberSets = ownSet + "numbers-"
)

// NoneClass and OpenClass are in the place of the hash in the names of the two classes that always exist.
const (
	NoneClass = "none"
	OpenClass = "open"
)

// Chains with fixed names. Each address family of the node's pods has its own chains.
const (
	ForwardChain = ownChain + "FORWARD"
	BridgeChain  = ownChain + "BRIDGE"
	InputChain   = ownChain + "INPUT"
	ErrorsChain  = ownChain + "ERRORS"
	SelfChain    = ownChain + "SELF"
	PortsChain   = ownChain + "PORTS"
	// These chains log and drop every packet. They have one reason each, which the log's text names by the chain.
	CutChain       = ownChain + "CUT"       // of cut connections
	MidstreamChain = ownChain + "MIDSTREAM" // of TCP connections of which connection tracking knows nothing
	NoPodChain     = ownChain + "NO-POD"    // from or to the bridge, but from or to no pod
	ForgedChain    = ownChain + "FORGED"    // from a pod's link, but not from the pod's addresses
	LoopbackChain  = ownChain + "LOOPBACK"  // to the node's loopback addresses

	AcceptChain      = ownChain + "ACCEPT"
	PostroutingChain = ownChain + "POSTROUTING"
	IngressChain     = ownChain + "INGRESS"
	EgressChain      = ownChain + "EGRESS"
	// LastIngressChain and LastEgressChain jump to IngressChain and EgressChain, and clear what these leave in the
	// packet's mark.
	LastIngressChain = IngressChain + "-LAST"
	LastEgressChain  = EgressChain + "-LAST"
	// TrialChain is made and deleted again, to find out which rules the kernel refuses. No rule sends packets to this
	// chain.
	TrialChain = ownChain + "TRIAL"
)

// Prefixes of the names of chains. Two of them are for the chains of classes. The rest of such a chain's name is the
// rest of the class set's name, in capitals.
const (
	ownChain           = "WEIR-"
	IngressClassChains = ownChain + "IN-"
	EgressClassChains  = ownChain + "EG-"
	// ByNumber follows one of these prefixes in the name of a chain that leads to the chains of classes by a part of their
	// numbers.
	ByNumber = "CLASSES-"
)

// OwnSet reports whether a set of that name is weir's: whether the name begins as all of weir's sets do.
func OwnSet(name string) bool { return strings.HasPrefix(name, ownSet) }

// HoldsPods reports whether the set of that name is weir's and may have entries of a pod, which must be removed when
// the pod ends. All of weir's sets may, except those of networks and of port numbers.
func HoldsPods(name string) bool {
	return OwnSet(name) && !strings.HasPrefix(name, NetworksSet) && !strings.HasPrefix(name, BlockSets) &&
		!strings.HasPrefix(name, NumberSets)
}

// SetGroup returns the prefix that the names of sets with one purpose share, such as weir-sel, for both families.
func SetGroup(name string) string {
	parts := strings.SplitN(name, "-", 3) // weir, the purpose, a hash
	group := strings.Join(parts[:min(len(parts), 2)], "-")
	return strings.TrimSuffix(group, "6") // weir-pods6 is in the group weir-pods
}

// IngressClass reports whether the set of that name has members of ingress classes, of either family: one class's, or
// those of all.
func IngressClass(name string) bool {
	return strings.HasPrefix(name, IngressClasses) || strings.TrimSuffix(name, "6") == IngressMap
}

// EgressClass reports whether the set of that name has members of egress classes, of either family: one class's, or
// those of all.
func EgressClass(name string) bool {
	return strings.HasPrefix(name, EgressClasses) || strings.TrimSuffix(name, "6") == EgressMap
}

// OwnChain reports whether a chain of that name is weir's: whether the name begins as all of weir's chains do.
func OwnChain(name string) bool { return strings.HasPrefix(name, ownChain) }
