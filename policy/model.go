// Package policy compiles NetworkPolicies into a ruleset: the sets and rules by which the kernel enforces them. A State
// has everything that policy needs to know of the cluster and of this node. Compile turns it into a ruleset.Ruleset.
//
// Invariants:
//   - The package is pure: it uses no netlink, no client of the Kubernetes API and no files.
//   - The same state gives the same ruleset. An Engine whose work is done has the ruleset that Compile would return.
//   - A part of a policy that can't be compiled allows nothing, and is reported with its object and field.
//   - If a node lacks capacity for all demands, each namespace keeps its share. A demand that doesn't fit allows
//     nothing, and is reported.
package policy

import (
	"fmt"
	"net/netip"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// State is the input of Compile: the cluster's objects, the endpoints on this node, this node's name, the parts of
// rulesets that the kernel has refused, and whether the kernel's sets have IPv6 addresses of unknown pods (Strays6).
type State struct {
	Objects
	Endpoints []Endpoint
	Node      string
	Refused   ruleset.Refused
	// Strays6 is true if the kernel has IPv6 addresses of pods that may have no endpoint. For example, a chained pod may
	// have lost its record. The ruleset then needs rules for IPv6, because only these rules deny the pod's packets.
	Strays6 bool
}

type Objects struct {
	Namespaces []Namespace
	Pods       []Pod
	Policies   []*networkingv1.NetworkPolicy
	// A source (source/kube or source/manifests) gives Nodes with all their claims. In a State, Nodes have only their
	// valid claims (package claims).
	Nodes []Node
	// Workloads has objects that make pods, such as Deployments. The pods that they make may be missing in Pods.
	Workloads []Workload
	// Problems are about parts of objects that can't be read. The other parts are used.
	Problems []ruleset.Problem
	// Unenforced has policies of kinds that weir doesn't enforce.
	Unenforced []Unenforced
}

// Unenforced stands for policies of a kind that weir doesn't enforce. Kind includes the group, such as
// CiliumNetworkPolicy.cilium.io. Kind is empty if it is unknown which kinds there are.
type Unenforced struct {
	Kind  string
	Where string
	// Count is the number of policies, or 0 if it is unknown.
	Count int
}

func (u Unenforced) String() string {
	if u.Kind == "" {
		return u.Where
	}
	return fmt.Sprintf("%s is a kind of policy that weir doesn't enforce: %s", u.Kind, u.Where)
}

// Empty reports whether there are no objects. Problems and Unenforced don't matter.
func (o Objects) Empty() bool {
	return len(o.Namespaces)+len(o.Pods)+len(o.Policies)+len(o.Nodes)+len(o.Workloads) == 0
}

// Node has the parts of a v1 Node that policy and the overlay need.
type Node struct {
	Name string
	// Created is zero if the time is unknown. If several Nodes state the same new address or podCIDR, only the claim of
	// the oldest Node is valid (claims.Settle).
	Created   time.Time
	Addresses []netip.Addr
	// PodCIDRs are the networks of the node's pods. weir never masquerades a packet to an address in a Node's PodCIDRs.
	PodCIDRs []netip.Prefix
}

// Namespace has the parts of a v1 Namespace that policy needs.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Unknown has the keys of labels that may exist with any value, or be missing.
	Unknown []string
}

// Pod has the parts of a v1 Pod that policy needs.
type Pod struct {
	Namespace, Name string
	// UID is empty if the source doesn't have it. The pod then matches every endpoint with the same namespace and name.
	UID    string
	Labels map[string]string
	// Unknown has the keys of labels that may exist with any value, or be missing. If a policy's podSelector depends on
	// such a label, the policy isolates the pod and allows nothing. If a peer's selector depends on such a label, the pod
	// doesn't match.
	Unknown []string
	Ports   []NamedPort
	// HostPorts has ports of the pod's node that lead to the pod. They don't change the ruleset, because weir checks
	// packets after their destination has been translated.
	HostPorts []HostPort `json:",omitempty"`
	NodeName  string
	// Addresses are the addresses in the pod's status. If the pod has an endpoint on this node, policies use the
	// endpoint's addresses instead.
	Addresses []netip.Addr
	// HostNetwork is true if the pod uses its node's addresses. No policy selects such a pod, and no peer's selector
	// matches it.
	HostNetwork bool
	Finished    bool
	// Unready is true if the pod's status says that Services don't send to the pod. Only sources without EndpointSlices
	// set Unready. It doesn't change the ruleset.
	Unready bool `json:",omitempty"`
}

// HostPort is a port of a pod's node that leads to a port of the pod.
type HostPort struct {
	Proto ruleset.Protocol
	// Address is the only address of the node at which the port leads to the pod. It is invalid if the port leads to the
	// pod at all addresses of the node.
	Address      netip.Addr
	Port, Target uint16
}

// NamedPort is a container port that policies can name. Pods may have different numbers under the same name.
type NamedPort struct {
	Name   string
	Proto  ruleset.Protocol
	Number uint16
}
