package conf

import "strings"

// This file is the one home of the names of weir's sets and chains: they are what the plugin, the agent, each backend
// and a newer version of weir have in common. The kernel takes 31 bytes for the name of a set and 28 for that of a
// chain of iptables, so a name has room for a hash of 16 letters. The names of sets are those of IPv4's sets;
// Family.Set makes IPv6's of them.

// Sets that are always there, or as soon as a pod needs them.
const (
	// PodsSet holds the addresses of every pod on the node: the kernel drops what comes from there or goes there unless
	// a class accepts it. The plugin puts a pod in before its link is up.
	PodsSet = ownSet + "pods"
	// NetworksSet holds the networks that pods' addresses come from.
	NetworksSet = ownSet + "networks"
	// ChainedSet holds the addresses of pods whose network another plugin made.
	ChainedSet = ownSet + "chained"
	// LinksSet holds links that belong to one pod each, which another plugin made, for any address.
	LinksSet = ownSet + "links"
	// SendersSet holds the addresses of the same pods, each with its link.
	SendersSet = ownSet + "senders"
	// TrialSet is made and destroyed again, to find out whether the kernel has a kind of set.
	TrialSet = ownSet + "trial"
)

// Beginnings of the names of sets. What follows is a hash of what the set means, except for the two sets of classes
// that are always there: none (the policies let nothing through) and open (no policy isolates the pods).
const (
	ownSet = "weir-"
	// IngressClasses and EgressClasses are class sets: the pods of this node that the same policies isolate.
	IngressClasses = ownSet + "in-"
	EgressClasses  = ownSet + "eg-"
	// SelectorSets hold the pods that a peer's selectors match.
	SelectorSets = ownSet + "sel-"
	// BlockSets hold the networks of a rule's ipBlocks.
	BlockSets = ownSet + "net-"
	// NamedPortSets hold the pods that have a named port, each with the port's number.
	NamedPortSets = ownSet + "port-"
	// NumberSets hold port numbers alone.
	NumberSets = ownSet + "numbers-"
)

// NoneClass and OpenClass stand in place of the hash in the names of the two classes that are always there.
const (
	NoneClass = "none"
	OpenClass = "open"
)

// Chains that are always there. Each is in the tables of both families.
const (
	ForwardChain     = ownChain + "FORWARD"
	InputChain       = ownChain + "INPUT"
	ErrorsChain      = ownChain + "ERRORS"
	SelfChain        = ownChain + "SELF"
	PortsChain       = ownChain + "PORTS"
	AcceptChain      = ownChain + "ACCEPT"
	PostroutingChain = ownChain + "POSTROUTING"
	IngressChain     = ownChain + "INGRESS"
	EgressChain      = ownChain + "EGRESS"
	// TrialChain is made and deleted again, to find out which rules the kernel refuses. No other chain leads there.
	TrialChain = ownChain + "TRIAL"
)

// Beginnings of the names of chains. What follows IngressClassChains and EgressClassChains is what follows the name of
// the class's set, in capitals.
const (
	ownChain           = "WEIR-"
	IngressClassChains = ownChain + "IN-"
	EgressClassChains  = ownChain + "EG-"
)

// OwnSet reports whether a set of that name is weir's.
func OwnSet(name string) bool { return strings.HasPrefix(name, ownSet) }

// HoldsPods reports whether the set of that name is weir's and has addresses of pods as its entries: a pod that ends
// leaves it. All of weir's sets do but those of networks and those of port numbers.
func HoldsPods(name string) bool {
	return OwnSet(name) && !strings.HasPrefix(name, NetworksSet) && !strings.HasPrefix(name, BlockSets) &&
		!strings.HasPrefix(name, NumberSets)
}

// SetGroup returns the beginning that the names of sets with one purpose have in common, such as weir-sel, for both
// families.
func SetGroup(name string) string {
	parts := strings.SplitN(name, "-", 3) // weir, the purpose, a hash
	group := strings.Join(parts[:min(len(parts), 2)], "-")
	return strings.TrimSuffix(group, "6") // of IPv6's sets without a hash
}

// IngressClass reports whether the set of that name is a class set of the ingress direction, of either family.
func IngressClass(name string) bool { return strings.HasPrefix(name, IngressClasses) }

// EgressClass reports whether the set of that name is a class set of the egress direction, of either family.
func EgressClass(name string) bool { return strings.HasPrefix(name, EgressClasses) }

// OwnChain reports whether a chain of that name is weir's.
func OwnChain(name string) bool { return strings.HasPrefix(name, ownChain) }
