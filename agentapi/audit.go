package agentapi

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// AuditPath is the path at which the agent sums up what audited policies would have dropped (AuditReport). The query
// "policy" names one policy, NAMESPACE/NAME. Without the query, the answer is about all.
const AuditPath = "/v1/audit"

// AuditReport is what audited policies would have dropped on one node since its agent started. It leaves out
// connections that they would not drop any more, because a policy or a pod has changed.
type AuditReport struct {
	Node string `json:"node,omitempty"`
	// Since is when the agent began to count.
	Since time.Time `json:"since"`
	// Audited are all audited policies that the agent knows.
	Audited []string         `json:"audited"`
	Dropped []AuditedTraffic `json:"wouldDrop"`
	// More is the number of connections that are not in Dropped, because there are too many different ones.
	More uint64 `json:"more,omitempty"`
	// Unjudged is the number of connections of all policies that the agent could not judge. Policies of the other
	// end may have dropped some of them.
	Unjudged uint64 `json:"unjudged,omitempty"`
	// Trouble says why the agent reads no packets; empty if it does.
	Trouble string `json:"trouble,omitempty"`
}

// AuditedTraffic is connections of the same kind that audited policies would drop.
type AuditedTraffic struct {
	// Direction is ingress or egress.
	Direction string `json:"direction"`
	// Policies are the audited policies that would isolate the pod. None of them allows the connections.
	Policies []string `json:"policies"`
	// Pod is the end that the policies would isolate.
	Pod  AuditedEnd `json:"pod"`
	Peer AuditedEnd `json:"peer"`
	// Protocol is the protocol above IP, such as tcp, or its number. Port is the destination's; 0 if the protocol has
	// none.
	Protocol string    `json:"protocol"`
	Port     uint16    `json:"port,omitempty"`
	Count    uint64    `json:"count"` // of first packets
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// AuditedEnd is one end of connections: pods of one namespace with the same labels, or an address.
type AuditedEnd struct {
	Namespace string `json:"namespace,omitempty"`
	// Labels are those that the pods of a workload have in common, without those that a controller gives to each pod.
	Labels map[string]string `json:"labels,omitempty"`
	// Name is the name of one of the pods; empty if no pod has the address, or several pods do.
	Name string `json:"name,omitempty"`
	// Node is the name of the Node that has the address as its own.
	Node string `json:"node,omitempty"`
	// Address is that of the pod, or that of the host.
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

// Kind returns a text that is equal for ends of one kind. Pods of a namespace with the same labels are one kind, and
// so is each address. A pod without labels is a kind of its own.
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

// CompareAudited orders traffic by direction and by the pod's namespace. Within these, the most connections come
// first.
func CompareAudited(a, b AuditedTraffic) int {
	return cmp.Or(strings.Compare(a.Direction, b.Direction), strings.Compare(a.Pod.Namespace, b.Pod.Namespace),
		cmp.Compare(b.Count, a.Count), strings.Compare(a.Pod.String(), b.Pod.String()),
		strings.Compare(a.Peer.String(), b.Peer.String()), strings.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Port, b.Port))
}
