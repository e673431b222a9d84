package conf

import "strings"

// This file has all names of weir's sets and chains, except those in the tables of the guard, the gate and the flow
// log. The kernel allows 31 bytes for the name of a set, and 28 for the name of an iptables chain. So a name has room
// for a hash of 16 letters. The constants are the names of the sets for IPv4. Family.Set returns the names for IPv6.

// These sets have fixed names. The names of all other sets end with a hash.
const (
	// PodsSet has the addresses of the node's pods, except pods with enforcement off. The kernel drops new connections
	// from and to these addresses unless the pods' classes (see ruleset.Class) allow the connections.
	PodsSet     = ownSet + "pods"
	NetworksSet = ownSet + "networks"
	ChainedSet  = ownSet + "chained"
	// LinksSet has the links of chained pods, if a link leads to a single pod. Ports of other plugins' bridges aren't
	// in the set. With iptables and many such links, further sets follow, whose names end in a number: weir-links-02
	// (weir-links6-02 for IPv6).
	LinksSet = ownSet + "links"
	// SendersSet has the addresses of the pods on the links of LinksSet, each with the pod's link.
	SendersSet = ownSet + "senders"
	// IngressMap and EgressMap have the pods of all classes of one direction, each with the number of its class. With
	// iptables, they replace the class sets if the kernel and iptables can read the number from a set's entry. With
	// nftables, they are always used, and have the class's chain instead of a number.
	IngressMap = ownSet + "in"
	EgressMap  = ownSet + "eg"
	// SelfSet and ErrorsSet have pairs: each address of PodsSet with itself. A packet matches SelfSet if its source is
	// also its destination. An ICMP error matches ErrorsSet if its source is the destination of the packet inside. Only
	// nftables needs these sets, because it can't compare two addresses of a packet with each other.
	SelfSet   = ownSet + "self"
	ErrorsSet = ownSet + "errors"
	// TrialSet is made and destroyed again, to find out which kinds of sets the kernel supports.
	TrialSet = ownSet + "trial"
)

// Prefixes of the names of sets. After each prefix except ownSet, a name ends with a hash. The classes "none" and
// "open" have the words NoneClass and OpenClass instead of the hash. The name of a merged set of networks is
// BlockSets, then "mrg-", then a hash.
const (
	ownSet         = "weir-"
	IngressClasses = ownSet + "in-"
	EgressClasses  = ownSet + "eg-"
	SelectorSets   = ownSet + "sel-"
	BlockSets      = ownSet + "net-"
	NamedPortSets  = ownSet + "port-"
	// MergedSets have the entries of several selector sets, and MergedBlockSets the entries of several block sets.
	MergedSets      = ownSet + "mrg-"
	MergedBlockSets = BlockSets + "mrg-"
	NumberSets      = ownSet + "numbers-"
)

// The two classes that always exist: NoneClass for pods whose policies allow nothing, and OpenClass for pods that no
// policy isolates. In the names of the two classes' sets, these words replace the hash.
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
	// LinkLocalChain drops pods' packets from and to link-local addresses on another plugin's bridge. IPv6 only.
	LinkLocalChain = ownChain + "LINK-LOCAL"
	// These chains log and drop every packet. The chain's name in the log's text says why the packet is dropped.
	CutChain       = ownChain + "CUT"       // packets of cut connections (see CutLabel)
	MidstreamChain = ownChain + "MIDSTREAM" // packets of TCP connections that connection tracking doesn't know
	NoPodChain     = ownChain + "NO-POD"    // packets from weir0 but from no pod, or to weir0 but to no pod
	ForgedChain    = ownChain + "FORGED"    // packets that come by a pod's link, but not from the pod's addresses
	LoopbackChain  = ownChain + "LOOPBACK"  // packets to the node's loopback addresses

	// LabelsChain has one rule, which no packet meets. The rule makes the kernel keep labels of connections. Only
	// nftables needs this chain.
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

// SetKind is the purpose of a set. Only KindOfSet derives the purpose from a set's name.
type SetKind uint8

const (
	// ForeignSet is a set of another program. UnknownSet is a set of weir with a purpose that this version doesn't know.
	ForeignSet SetKind = iota
	UnknownSet
	SetOfPods
	SetOfNetworks
	SetOfChained
	SetOfLinks
	SetOfSenders
	// SetOfIngress has the pods of one ingress class, or of all ingress classes. SetOfEgress has the pods of egress
	// classes.
	SetOfIngress
	SetOfEgress
	SetOfSelves
	SetOfErrors
	SetOfTrials
	SetOfSelected
	SetOfBlocks
	SetOfNamedPorts
	SetOfMerged
	SetOfMergedBlocks
	SetOfNumbers
)

var fixedSets = map[string]SetKind{
	PodsSet: SetOfPods, NetworksSet: SetOfNetworks, ChainedSet: SetOfChained, LinksSet: SetOfLinks,
	SendersSet: SetOfSenders, IngressMap: SetOfIngress, EgressMap: SetOfEgress, SelfSet: SetOfSelves,
	ErrorsSet: SetOfErrors, TrialSet: SetOfTrials,
}

// hashedSets lists MergedBlockSets before BlockSets. KindOfSet uses the first prefix that fits, and BlockSets also fits
// the names that begin with MergedBlockSets.
var hashedSets = []struct {
	prefix string
	kind   SetKind
}{
	{IngressClasses, SetOfIngress},
	{EgressClasses, SetOfEgress},
	{SelectorSets, SetOfSelected},
	{MergedBlockSets, SetOfMergedBlocks},
	{BlockSets, SetOfBlocks},
	{NamedPortSets, SetOfNamedPorts},
	{MergedSets, SetOfMerged},
	{NumberSets, SetOfNumbers},
	{TrialSet + "-", SetOfTrials},
	{LinksSet + "-", SetOfLinks},
	{LinksSet + "6-", SetOfLinks},
}

// KindOfSet returns the purpose of the set with this name, of either family.
func KindOfSet(name string) SetKind {
	if !strings.HasPrefix(name, ownSet) {
		return ForeignSet
	}
	if k, fixed := fixedSets[strings.TrimSuffix(name, "6")]; fixed {
		return k
	}
	for _, h := range hashedSets {
		if strings.HasPrefix(name, h.prefix) {
			return h.kind
		}
	}
	return UnknownSet
}

// MayHavePods reports whether sets of this kind may have entries of a pod. It returns true for weir's sets with an
// unknown purpose: if DEL left a pod's entries there, a later pod with the same address could inherit them.
func (k SetKind) MayHavePods() bool {
	switch k {
	case ForeignSet, SetOfNetworks, SetOfBlocks, SetOfMergedBlocks, SetOfNumbers, SetOfTrials:
		return false
	}
	return true
}

func OwnSet(name string) bool { return KindOfSet(name) != ForeignSet }

// SetGroup returns the common beginning of the names of all sets with the same purpose, such as weir-sel. The
// sets for IPv4 and for IPv6 are in one group.
func SetGroup(name string) string {
	parts := strings.SplitN(name, "-", 3) // the parts are weir, the purpose and a hash
	group := strings.Join(parts[:min(len(parts), 2)], "-")
	return strings.TrimSuffix(group, "6") // weir-pods6 is in the group weir-pods
}

// ChainKind is the purpose of a chain. It has only the purposes that code must read from a chain's name.
type ChainKind uint8

const (
	ForeignChain ChainKind = iota
	// OtherChain is any other chain of weir, even a chain that this version doesn't know.
	OtherChain
	// ChainOfIngress and ChainOfEgress are chains of pods' classes in one direction, and chains that find a class by its
	// number.
	ChainOfIngress
	ChainOfEgress
)

func KindOfChain(name string) ChainKind {
	switch {
	case strings.HasPrefix(name, IngressClassChains):
		return ChainOfIngress
	case strings.HasPrefix(name, EgressClassChains):
		return ChainOfEgress
	case strings.HasPrefix(name, ownChain):
		return OtherChain
	}
	return ForeignChain
}

func OwnChain(name string) bool { return KindOfChain(name) != ForeignChain }
