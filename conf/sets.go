package conf

import "strings"

// This file has all names of weir's sets and chains, except those in the tables of the guard, the gate and the flow
// log. The kernel allows 31 bytes for a set's name and 28 for an iptables chain's, so a name has room for a hash of 16
// letters. The constants name IPv4's sets; Family.Set turns them into IPv6's.

// Sets with fixed names.
const (
	// PodsSet has the addresses of the node's pods, except those with enforcement off. The kernel drops packets from
	// and to them unless a class accepts the packets.
	PodsSet     = ownSet + "pods"
	NetworksSet = ownSet + "networks"
	ChainedSet  = ownSet + "chained"
	// LinksSet has the links that another plugin made for one pod each.
	LinksSet = ownSet + "links"
	// SendersSet has the addresses of the pods on the links of LinksSet, each with the pod's link.
	SendersSet = ownSet + "senders"
	// IngressMap and EgressMap have the pods of all classes of one direction, each with its class's number.
	// They replace class sets if the kernel can look such numbers up.
	IngressMap = ownSet + "in"
	EgressMap  = ownSet + "eg"
	// SelfSet and ErrorsSet have each address of PodsSet twice. Only nftables needs them: it can't compare two
	// addresses of a packet.
	SelfSet   = ownSet + "self"
	ErrorsSet = ownSet + "errors"
	// TrialSet is made and destroyed again, to find out which kinds of sets the kernel supports.
	TrialSet = ownSet + "trial"
)

// Prefixes of the names of sets. A hash follows.
const (
	ownSet         = "weir-"
	IngressClasses = ownSet + "in-"
	EgressClasses  = ownSet + "eg-"
	SelectorSets   = ownSet + "sel-"
	BlockSets      = ownSet + "net-"
	NamedPortSets  = ownSet + "port-"
	// MergedSets have the entries of several selector sets, and MergedBlockSets those of several block sets.
	MergedSets      = ownSet + "mrg-"
	MergedBlockSets = BlockSets + "mrg-"
	NumberSets      = ownSet + "numbers-"
)

// NoneClass and OpenClass replace the hash in the names of the sets of the two classes that always exist.
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
	// These chains log and drop every packet. The log's text names the chain, which tells the reason.
	CutChain       = ownChain + "CUT"       // of cut connections
	MidstreamChain = ownChain + "MIDSTREAM" // of TCP connections that connection tracking doesn't know
	NoPodChain     = ownChain + "NO-POD"    // from or to the bridge, but from or to no pod
	ForgedChain    = ownChain + "FORGED"    // from a pod's link, but not from the pod's addresses
	LoopbackChain  = ownChain + "LOOPBACK"  // to the node's loopback addresses

	// LabelsChain has one rule, which no packet meets. It makes the kernel keep labels of connections, and only
	// nftables needs it.
	LabelsChain = ownChain + "LABELS"

	AcceptChain      = ownChain + "ACCEPT"
	PostroutingChain = ownChain + "POSTROUTING"
	IngressChain     = ownChain + "INGRESS"
	EgressChain      = ownChain + "EGRESS"
	// LastIngressChain and LastEgressChain jump to IngressChain and EgressChain, and then clear the class's
	// number in the packet's mark.
	LastIngressChain = IngressChain + "-LAST"
	LastEgressChain  = EgressChain + "-LAST"
	// TrialChain is made and deleted again, to find out which rules the kernel refuses, or accepts without effect. Only
	// packets over the loopback link may enter it.
	TrialChain = ownChain + "TRIAL"
)

// Prefixes of the names of chains. The name of a class's chain ends like the name of its class set, in
// capitals.
const (
	ownChain           = "WEIR-"
	IngressClassChains = ownChain + "IN-"
	EgressClassChains  = ownChain + "EG-"
	// ByNumber follows one of these prefixes in the names of chains that find a packet's class by the class's number.
	ByNumber = "CLASSES-"
)

func OwnSet(name string) bool { return strings.HasPrefix(name, ownSet) }

// HoldsPods reports whether the set is weir's and may have entries of a pod.
func HoldsPods(name string) bool {
	return OwnSet(name) && !strings.HasPrefix(name, NetworksSet) && !strings.HasPrefix(name, BlockSets) &&
		!strings.HasPrefix(name, NumberSets)
}

// SetGroup returns what the names of all sets with the same purpose begin with, such as weir-sel. Both families have
// the same groups.
func SetGroup(name string) string {
	parts := strings.SplitN(name, "-", 3) // weir, the purpose, a hash
	group := strings.Join(parts[:min(len(parts), 2)], "-")
	return strings.TrimSuffix(group, "6") // weir-pods6 is in the group weir-pods
}

// IngressClass reports whether the set has pods of ingress classes, of either family.
func IngressClass(name string) bool {
	return strings.HasPrefix(name, IngressClasses) || strings.TrimSuffix(name, "6") == IngressMap
}

// EgressClass reports whether the set has pods of egress classes, of either family.
func EgressClass(name string) bool {
	return strings.HasPrefix(name, EgressClasses) || strings.TrimSuffix(name, "6") == EgressMap
}

func OwnChain(name string) bool { return strings.HasPrefix(name, ownChain) }
