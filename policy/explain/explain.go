// Package explain tells why a connection is allowed or dropped: which policies isolate its ends, which rule allows it,
// and which change would allow it.
//
// Invariants:
//   - The package is pure: callers read the objects, and print the explanations.
//   - The verdicts come from package verdict, and not from the compiler.
//   - An explanation names the objects that could not be read (Gaps), and the nodes whose kernels could not be read.
package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

type Result string

// Result is Allowed or Dropped for a path (one connection). For a query, which may have several paths or none, it
// may also be Mixed or Nothing.
const (
	Allowed Result = "allowed"
	Dropped Result = "dropped"
	// Mixed means that some paths of a query are allowed and others are dropped.
	Mixed Result = "mixed"
	// Nothing means that the query has no path. The notes say why.
	Nothing Result = "nothing to reach"
)

// Explanation is the answer to a query. docs/explain.md documents its JSON. Newer versions only add fields.
type Explanation struct {
	Query  Query  `json:"query"`
	Result Result `json:"result"`
	// Paths has a connection for each pair of addresses and each port. If pods behind a Service have the same verdicts,
	// the connections to them are one path.
	Paths []Path `json:"paths"`
	// Notes say what else matters for the connection, besides policies.
	Notes []string `json:"notes,omitempty"`
	// Gaps say which objects could not be read.
	Gaps []string `json:"gaps,omitempty"`
	// Source says where the objects were read.
	Source string `json:"source,omitempty"`
}

// Differs reports whether a kernel's state differs from the policies in one of the paths.
func (e Explanation) Differs() bool {
	differs := func(k Kernel) bool { return len(k.Differences) > 0 }
	return slices.ContainsFunc(e.Paths, func(p Path) bool {
		return p.Kernel != nil && differs(*p.Kernel) || slices.ContainsFunc(p.Kernels, differs)
	})
}

type Path struct {
	Family string `json:"family"`
	From   Place  `json:"from"`
	To     Place  `json:"to"`
	// Protocol and Port are those of the destination. For a Service, the port is that of the pod behind the Service.
	Protocol ruleset.Protocol `json:"protocol"`
	Port     uint16           `json:"port,omitempty"`
	// Through is the Service that leads to the destination, such as "svc/ns-1/web port 80".
	Through string `json:"through,omitempty"`
	// Alike has other pods behind the Service that have the same verdicts.
	Alike   []string `json:"alike,omitempty"`
	Result  Result   `json:"result"`
	Sides   []Side   `json:"sides"`
	Notes   []string `json:"notes,omitempty"`
	Kernel  *Kernel  `json:"kernel,omitempty"`
	Kernels []Kernel `json:"kernels,omitempty"`
}

// Place is one end of a path.
type Place struct {
	Address netip.Addr `json:"address"`
	Pod     string     `json:"pod,omitempty"`
	Node    string     `json:"node,omitempty"`
	// HostNetwork is true if the pod uses its node's address. Here is true if the pod is on the agent's node.
	HostNetwork bool   `json:"hostNetwork,omitempty"`
	Here        bool   `json:"here,omitempty"`
	What        string `json:"what,omitempty"`
	// Invented is true if the source made up the address because the pod has none.
	Invented bool `json:"invented,omitempty"`
	// isNode is true for an address of a node, and isOwn if this is the agent's node. isTunnel is true for the address
	// from which a node sends through the tunnel. isWorld is true if the address stands for all hosts outside of the
	// cluster.
	isNode, isOwn, isTunnel, isWorld bool
	// forwards is true for a node that forwards packets to pods of other nodes. isAnyNode is true if the address stands
	// for the addresses of several nodes.
	forwards, isAnyNode bool
	// isUnused is true if the address is in the pods' network of the node Node, and no known pod has the address. isVacant
	// is true if, in addition, all pods that may have the address are known.
	isUnused, isVacant bool
}

// Side is the verdict of the policies at one end of a path.
type Side struct {
	Direction ruleset.Direction `json:"direction"`
	Result    Result            `json:"result"`
	Reason    Reason            `json:"reason"`
	Pod       string            `json:"pod,omitempty"`
	// Node is the node whose rules enforce the verdict, or empty if the node is unknown.
	Node string `json:"node,omitempty"`
	// Policies has all policies that isolate the pod in this direction.
	Policies []string `json:"policies"`
	// Audited has the audited policies that would isolate the pod if they were enforced. They don't change the result.
	Audited []string `json:"audited,omitempty"`
	// WouldDrop is true if the connection passes, and would be dropped if the audited policies were also enforced.
	// NearestAudited has rules of the audited policies that almost allow the connection, the nearest first.
	WouldDrop      bool           `json:"wouldDrop,omitempty"`
	NearestAudited []verdict.Near `json:"nearestAudited,omitempty"`
	// OnlyAudited has rules of audited policies that would allow a dropped connection if these policies were enforced.
	OnlyAudited []Rule `json:"onlyAudited,omitempty"`
	Allows      []Rule `json:"allows,omitempty"`
	// Nearest has rules that almost allow the connection. The rules with the fewest unmet conditions come first.
	Nearest []verdict.Near `json:"nearest,omitempty"`
	// Change says which rule to add to allow a dropped connection. It is empty for a closed pod, and if the advice
	// in Nearest is enough.
	Change string `json:"change,omitempty"`
}

type Rule struct {
	Policy string `json:"policy"`
	Field  string `json:"field"`          // such as spec.ingress[0]
	Peer   string `json:"peer,omitempty"` // field of the peer; empty if the rule allows all peers
	Port   string `json:"port,omitempty"` // field of the port; empty if the rule allows all ports
}

type Reason string

const (
	// Isolated means that policies isolate the pod, so one of their rules must allow the connection.
	Isolated Reason = "isolated"
	// Open means that no policy isolates the pod.
	Open Reason = "open"
	// Vacant means that the address is in the pods' network of a node, and that no pod has it. The node drops the
	// packets.
	Vacant Reason = "vacant"
	// NoPod means that there is no pod at this end, so no policy applies.
	NoPod Reason = "noPod"
	// HostNetwork means that the pod has its node's address. Policies don't apply to such pods.
	HostNetwork Reason = "hostNetwork"
	// FromNode means that a node sends to one of its own pods. Such packets aren't checked.
	FromNode Reason = "fromNode"
	// Itself means that a pod sends to itself. Such packets always pass.
	Itself Reason = "itself"
	// Off means that enforcement is off for the pod (conf.Off), so no policy applies.
	Off Reason = "off"
	// Closed means that the agent doesn't know the pod. All new connections of the pod are dropped.
	Closed Reason = "closed"
	// Uncertain means that several pods may have the address. The policies must allow the connection for all of them.
	Uncertain Reason = "uncertain"
)
