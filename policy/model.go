// Package policy compiles NetworkPolicies into a ruleset: the sets and rules by which the kernel enforces them. A State
// has all that policy needs to know of the cluster and of this node. Compile turns it into a ruleset.Ruleset.
//
// Invariants:
//   - The package is pure: it uses no netlink, no client of the Kubernetes API and no files.
//   - The same state gives the same ruleset. An Engine without waiting work has the ruleset that Compile would give.
//   - A part of a policy that can't be compiled allows nothing, and is reported with its object and field.
//   - If a node has no room for all demands, each namespace keeps its share. A demand without room allows nothing, and
//     is reported.
package policy

import (
	"fmt"
	"net/netip"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// State is the input of Compile.
type State struct {
	Objects
	Endpoints []Endpoint
	Node      string
	Refused   ruleset.Refused
}

type Objects struct {
	Namespaces []Namespace
	Pods       []Pod
	Policies   []*networkingv1.NetworkPolicy
	// Nodes of a source have all their claims. Nodes of a State have only the claims that count (package claims).
	Nodes []Node
	// Workloads make pods that are not in Pods.
	Workloads []Workload
	// Problems are parts of objects that can't be read. The other parts are used.
	Problems []ruleset.Problem
	// Unenforced are policies of kinds that weir doesn't enforce.
	Unenforced []Unenforced
}

// Unenforced are policies of one kind that weir doesn't enforce. Kind includes the group, such as
// CiliumNetworkPolicy.cilium.io. It is empty if the kinds are unknown.
type Unenforced struct {
	Kind  string
	Where string
	// Count is the number of policies; 0 if it is unknown.
	Count int
}

func (u Unenforced) String() string {
	if u.Kind == "" {
		return u.Where
	}
	return fmt.Sprintf("%s is a kind of policy that weir doesn't enforce: %s", u.Kind, u.Where)
}

// Empty reports whether there are no objects. Problems and Unenforced don't count.
func (o Objects) Empty() bool {
	return len(o.Namespaces)+len(o.Pods)+len(o.Policies)+len(o.Nodes)+len(o.Workloads) == 0
}

// Node has the parts of a v1 Node that policy and the overlay need.
type Node struct {
	Name string
	// Created is zero if it is unknown. If two Nodes make the same new claim, the older Node's claim counts.
	Created   time.Time
	Addresses []netip.Addr
	// PodCIDRs are the networks of the node's pods. Packets from pods to them are never masqueraded.
	PodCIDRs []netip.Prefix
}

// Namespace has the parts of a v1 Namespace that policy needs.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Unknown are the keys of labels whose value, or existence, is unknown.
	Unknown []string
}

// Pod has the parts of a v1 Pod that policy needs.
type Pod struct {
	Namespace, Name string
	// UID is empty if the source has none. The pod then matches every endpoint of the same name.
	UID    string
	Labels map[string]string
	// Unknown are the keys of labels whose value, or existence, is unknown. If a policy's podSelector depends on such
	// a label, the policy isolates the pod and allows nothing. No peer matches by such a label.
	Unknown []string
	Ports   []NamedPort
	// HostPorts are ports of the pod's node that lead to ports of the pod. No ruleset depends on them: weir
	// checks packets after this translation.
	HostPorts []HostPort `json:",omitempty"`
	NodeName  string
	// Addresses are from the pod's status. Policy doesn't use them if the pod has an endpoint on this node.
	Addresses []netip.Addr
	// HostNetwork pods have their node's addresses. No policy selects them, and no peer's selector matches
	// them.
	HostNetwork bool
	Finished    bool
	// Unready is true if the pod's status says that Services don't send to the pod. Only sources without
	// EndpointSlices set it, and no ruleset depends on it.
	Unready bool `json:",omitempty"`
}

// HostPort is a port of a pod's node that leads to a port of the pod.
type HostPort struct {
	Proto ruleset.Protocol
	// Address is the node's address with this port. It is invalid if all addresses have the port.
	Address      netip.Addr
	Port, Target uint16
}

// NamedPort is a named port of one pod, with its number.
type NamedPort struct {
	Name   string
	Proto  ruleset.Protocol
	Number uint16
}
