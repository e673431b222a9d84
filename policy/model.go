// Package policy is weir's heart: what NetworkPolicies mean, and which sets and rules make the kernel do it.
//
// It is pure. State is what is known of the cluster and of this node; Compile turns it into a ruleset.Ruleset, the sets
// and chains that should be in the kernel; ruleset.Simulator says what these do with a packet. Nothing here knows
// netlink, the Kubernetes API or a file: others bring states in and rulesets out.
package policy

import (
	"fmt"
	"net/netip"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

// State is all that policy depends on.
type State struct {
	Objects
	// Endpoints are the attachments on this node.
	Endpoints []Endpoint
	// Node is the name of this node's Node; empty if it isn't known.
	Node string
	// Parsed are policies that were read before; it only saves time, and may be nil.
	Parsed *Parsed
	// Refused is what of earlier rulesets this node's kernel has refused.
	Refused ruleset.Refused
}

// Objects are what a source (the Kubernetes API, a directory of manifests) knows of the cluster.
type Objects struct {
	Namespaces []Namespace
	Pods       []Pod
	Policies   []*networkingv1.NetworkPolicy
	// Nodes of a source are as they were written; those of a State only have what counts of them (Settle).
	Nodes []Node
	// Workloads make pods that are not among the pods.
	Workloads []Workload
	// Problems are parts of objects that can't be read; the rest of these objects counts.
	Problems []ruleset.Problem
	// Unenforced are policies of other kinds, which weir doesn't enforce.
	Unenforced []Unenforced
}

// Unenforced are policies that are there and that weir doesn't enforce.
type Unenforced struct {
	// Kind with its group, such as CiliumNetworkPolicy.cilium.io; empty if it isn't known which kinds there are.
	Kind string
	// Where says which they are: a file's document, or an API server.
	Where string
	// Count is how many there are; 0 if that isn't known.
	Count int
}

// String is one line for a log.
func (u Unenforced) String() string {
	if u.Kind == "" {
		return u.Where
	}
	return fmt.Sprintf("%s is a kind of policy that weir doesn't enforce: %s", u.Kind, u.Where)
}

// Empty says whether there is no object at all.
func (o Objects) Empty() bool {
	return len(o.Namespaces)+len(o.Pods)+len(o.Policies)+len(o.Nodes)+len(o.Workloads) == 0
}

// Node is what policy and the overlay need of a v1 Node.
type Node struct {
	Name string
	// Created is when the object was made; zero if the source doesn't know. Of two Nodes that claim the same, the older
	// one keeps it.
	Created time.Time
	// Addresses are its InternalIPs, in the order of its status.
	Addresses []netip.Addr
	// PodCIDRs hold its pods. Traffic within all nodes' is never masqueraded.
	PodCIDRs []netip.Prefix
}

// Namespace is what policy needs of a v1 Namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Unknown are keys of labels whose values aren't known, or not even whether they are there.
	Unknown []string
}

// Pod is what policy needs of a v1 Pod.
type Pod struct {
	Namespace, Name string
	// UID is empty where the source has none; it then fits every endpoint of the pod's name.
	UID    string
	Labels map[string]string
	// Unknown are keys of labels whose values aren't known, or not even whether they are there. Whom a selector of such
	// a label means is unknown: it isolates the pod, and lets nothing through to or from it.
	Unknown []string
	// Ports are its containers' named ports, no two with the same name and protocol.
	Ports []NamedPort
	// NodeName is the Node that the pod runs on.
	NodeName string
	// Addresses are from the pod's status. They are believed as far as its Node may give them out; an endpoint on this
	// node knows better.
	Addresses []netip.Addr
	// HostNetwork pods have their node's addresses: no policy selects them, and no selector means them.
	HostNetwork bool
	// Finished pods (phase Succeeded or Failed) have given their addresses back.
	Finished bool
}

// NamedPort is what a policy's port that is a name means for one pod.
type NamedPort struct {
	Name   string
	Proto  ruleset.Protocol
	Number uint16
}
