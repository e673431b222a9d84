package agentapi

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// AuditPath answers with an AuditReport. The query policy=NAMESPACE/NAME limits the report to one policy.
const AuditPath = "/v1/audit"

// AuditReport lists connections that audited policies would have dropped on one node since the node's agent started. A
// connection is left out if the present policies would no longer drop it.
type AuditReport struct {
	Node    string           `json:"node,omitempty"`
	Since   time.Time        `json:"since"`
	Audited []string         `json:"audited"`
	Dropped []AuditedTraffic `json:"wouldDrop"`
	// More counts connections of further kinds, for which there was no room in Dropped.
	More uint64 `json:"more,omitempty"`
	// Unevaluated counts the connections that the agent could not evaluate, for all policies together. For example, the
	// agent evaluates no connection of a pod that has ended.
	Unevaluated uint64 `json:"unevaluated,omitempty"`
	// Trouble says why the agent reads no packets. It is empty if the agent reads them.
	Trouble string `json:"trouble,omitempty"`
}

// AuditedTraffic stands for all connections that audited policies would drop and that are of one kind: with the same
// direction, policies, protocol and port, between ends of the same kinds (AuditedEnd.Kind).
type AuditedTraffic struct {
	Direction string `json:"direction"`
	// Policies are the audited policies that would isolate the pod. None of them allows the connections.
	Policies []string   `json:"policies"`
	Pod      AuditedEnd `json:"pod"`
	Peer     AuditedEnd `json:"peer"`
	// Protocol is the protocol above IP, such as tcp, or its number. Port is the destination's port, or 0.
	Protocol string    `json:"protocol"`
	Port     uint16    `json:"port,omitempty"`
	Count    uint64    `json:"count"` // the number of packets with which connections began
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// AuditedEnd is one end of connections: the pods of one workload, or an address.
type AuditedEnd struct {
	Namespace string `json:"namespace,omitempty"`
	// Labels are the labels that the pods of the workload have in common. Labels such as job-name, which a controller
	// sets anew for each pod or Job, are left out.
	Labels map[string]string `json:"labels,omitempty"`
	// Name is the name of one of the pods. It is empty if no pod has the address, or if several pods have the address.
	Name string `json:"name,omitempty"`
	// Node is the node's name, if the address is a node's own. For a pod's address, Node is empty.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address"`
}

// String returns "shop/db-0", "node n1" or the address.
func (e AuditedEnd) String() string {
	switch {
	case e.Name != "":
		return e.Namespace + "/" + e.Name
	case e.Node != "":
		return "node " + e.Node
	}
	return e.Address.String()
}

// Kind returns a text that is equal for ends of one kind: pods of one namespace with the same labels. Each pod without
// labels is a kind of its own, and so is each address without a pod.
func (e AuditedEnd) Kind() string {
	switch {
	case e.Name == "":
		return e.Address.String()
	case len(e.Labels) == 0:
		return e.Namespace + "/" + e.Name
	}
	var b strings.Builder
	b.WriteString(e.Namespace)
	for _, key := range slices.Sorted(maps.Keys(e.Labels)) {
		b.WriteString("\n" + key + "=" + e.Labels[key])
	}
	return b.String()
}

// CompareAudited orders by direction, then by the pod's namespace, then by count (largest first), then by the other
// fields.
func CompareAudited(a, b AuditedTraffic) int {
	return cmp.Or(strings.Compare(a.Direction, b.Direction), strings.Compare(a.Pod.Namespace, b.Pod.Namespace),
		cmp.Compare(b.Count, a.Count), strings.Compare(a.Pod.String(), b.Pod.String()),
		strings.Compare(a.Peer.String(), b.Peer.String()), strings.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Port, b.Port))
}
