package agentapi

import (
	"net/netip"
	"net/url"
	"time"
)

// FlowsPath is the path at which the agent answers GET and POST with Flows. A POST has a FlowsOrder, which the agent
// first carries out.
const FlowsPath = "/v1/flows"

// FlowsOrder says for how long the agent shall record flows. Zero ends the recording.
type FlowsOrder struct {
	For time.Duration `json:"for"`
}

// FlowsQuery returns the path and query for the flows of the time since until now. 0 means all.
func FlowsQuery(since time.Duration) string {
	if since == 0 {
		return FlowsPath
	}
	return FlowsPath + "?" + url.Values{"since": {since.String()}}.Encode()
}

// Flows are the kinds of connections whose first packets the policies have allowed on a node while the agent recorded.
type Flows struct {
	Node string `json:"node,omitempty"`
	// Since is when the recording began; zero if the agent has recorded nothing. Until is when it ends, or has ended.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Recording is true if the agent records now. Why says why it can't although it should.
	Recording bool   `json:"recording"`
	Why       string `json:"why,omitempty"`
	// Unknown counts packets that belong to no flow of the list: there were too many of them, or the agent read too
	// slowly.
	Unknown uint64 `json:"unknown,omitempty"`
	// Forgotten counts flows that made room for newer ones.
	Forgotten uint64 `json:"forgotten,omitempty"`
	Flows     []Flow `json:"flows"`
}

// Flow is connections of one source to one port of one destination. A UDP packet counts as a connection until an
// answer comes.
type Flow struct {
	Source      FlowEnd   `json:"source"`
	Destination FlowEnd   `json:"destination"`
	Protocol    string    `json:"protocol"`
	Port        uint16    `json:"port,omitempty"` // of the destination
	Count       uint64    `json:"count"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
}

// FlowEnd is an end of a Flow, as it was when the flow was first seen.
type FlowEnd struct {
	// Pod is the pod's namespace/name, or several with commas between them if they share the address.
	Pod string `json:"pod,omitempty"`
	// Labels are the pod's labels. They are nil without a pod, or if several pods may have the address.
	Labels map[string]string `json:"labels,omitempty"`
	// Node is the name of the Node that has the address as its own.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address"`
}

// String returns the end in words.
func (e FlowEnd) String() string {
	return DropEnd{Pod: e.Pod, Node: e.Node, Address: e.Address}.String()
}
