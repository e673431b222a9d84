// Package policy compiles NetworkPolicies into a ruleset: the sets and rules by which the kernel enforces them.
//
// State is all that policy needs to know of the cluster and of this node. Compile turns a State into a ruleset.Ruleset.
// A ruleset.Simulator runs packets through a ruleset in memory. The package is pure: it uses no netlink, no client of
// the Kubernetes API and no files. Its callers supply states and use the rulesets.
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
	// Endpoints are the attachments on this node.
	Endpoints []Endpoint
	// Node is the name of this node's Node; empty if it isn't known.
	Node string
	// Refused are the parts of earlier rulesets that this node's kernel has refused.
	Refused ruleset.Refused
}

// Objects are the objects of the cluster that a source has (the Kubernetes API, a directory of manifests).
type Objects struct {
	Namespaces []Namespace
	Pods       []Pod
	Policies   []*networkingv1.NetworkPolicy
	// Nodes of a source have all their claims. Nodes of a State have only the claims that count (Settle).
	Nodes []Node
	// Workloads make pods that are not in Pods.
	Workloads []Workload
	// Problems are parts of objects that can't be read. The other parts of these objects are used.
	Problems []ruleset.Problem
	// Unenforced are policies of kinds that weir doesn't enforce.
	Unenforced []Unenforced
}

// Unenforced are policies of one kind that weir doesn't enforce.
type Unenforced struct {
	// Kind is the kind with its group, such as CiliumNetworkPolicy.cilium.io. It is empty if the kinds are unknown.
	Kind string
	// Where is where the policies are: a document of a file, or an API server.
	Where string
	// Count is the number of policies; 0 if it is unknown.
	Count int
}

// String returns one line for a log.
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
	// Created is the object's creation time; zero if it is unknown. If two Nodes make the same claim, the claim of the
	// older Node counts.
	Created time.Time
	// Addresses are the node's InternalIPs, in the order of its status.
	Addresses []netip.Addr
	// PodCIDRs are the networks of the node's pods. Packets from pods to any node's PodCIDRs are never masqueraded.
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
	// Unknown are the keys of labels whose value, or existence, is unknown. If a policy's podSelector depends on one,
	// the policy isolates the pod and allows nothing. If a peer's selector depends on one, it doesn't match the pod.
	Unknown []string
	// Ports are the named ports of the pod's containers, no two with the same name and protocol.
	Ports []NamedPort
	// HostPorts are ports of the pod's node that lead to ports of the pod. No ruleset depends on them: weir checks
	// packets after this translation.
	HostPorts []HostPort `json:",omitempty"`
	// NodeName is the name of the Node that the pod runs on.
	NodeName string
	// Addresses are from the pod's status. Policy uses those that the pod's Node can assign. If the pod has an endpoint
	// on this node, policy uses the endpoint's addresses instead.
	Addresses []netip.Addr
	// HostNetwork pods have their node's addresses. No policy selects them, and no peer's selector matches them.
	HostNetwork bool
	// Finished pods (phase Succeeded or Failed) have no addresses any more.
	Finished bool
}

// HostPort is a port of a pod's node that leads to a port of the pod.
type HostPort struct {
	Proto ruleset.Protocol
	// Address is the node's address with this port. It is invalid if all addresses have the port.
	Address netip.Addr
	// Port is the node's port, and Target the pod's.
	Port, Target uint16
}

// NamedPort is a named port of one pod, with its number.
type NamedPort struct {
	Name   string
	Proto  ruleset.Protocol
	Number uint16
}
