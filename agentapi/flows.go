package agentapi

import (
	"net/netip"
	"net/url"
	"time"
)

// FlowsPath answers with Flows. A POST with a FlowsOrder first starts or ends the recording.
const FlowsPath = "/v1/flows"

// FlowsOrder asks for a recording of flows. The recording lasts For, counted from now. If For is 0, the recording ends.
type FlowsOrder struct {
	For time.Duration `json:"for"`
}

// FlowsQuery returns the path and query for the flows that were seen within the duration since, up to now. If since is
// 0, the query is for all flows.
func FlowsQuery(since time.Duration) string {
	if since == 0 {
		return FlowsPath
	}
	return FlowsPath + "?" + url.Values{"since": {since.String()}}.Encode()
}

// Flows are the allowed connections that a node's agent has recorded.
type Flows struct {
	Node string `json:"node,omitempty"`
	// Since and Until are the beginning and the end of the last recording. Since is zero if there was no recording.
	// Until may be in the future.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Recording is true while the agent records. If it can't record although a recording is ordered, Why is the reason.
	Recording bool   `json:"recording"`
	Why       string `json:"why,omitempty"`
	// Unknown counts packets that are in no flow, for instance because the agent read too slowly.
	Unknown uint64 `json:"unknown,omitempty"`
	// Forgotten counts flows that the agent removed to make room for newer flows.
	Forgotten uint64 `json:"forgotten,omitempty"`
	Flows     []Flow `json:"flows"`
}

// Flow stands for all recorded connections of one source to one port of one destination. Each UDP packet counts as a
// connection until an answer comes.
type Flow struct {
	Source      FlowEnd   `json:"source"`
	Destination FlowEnd   `json:"destination"`
	Protocol    string    `json:"protocol"`
	Port        uint16    `json:"port,omitempty"` // the port of the destination
	Count       uint64    `json:"count"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
}

// FlowEnd describes one end of a Flow, with its last known labels.
type FlowEnd struct {
	// Pod is namespace/name. If several pods may have the address, commas separate them.
	Pod string `json:"pod,omitempty"`
	// Labels are nil if no pod has the address, or if several pods may have it.
	Labels map[string]string `json:"labels,omitempty"`
	// Node is the node's name, if the address is a node's own. For a pod's address, Node is empty.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address"`
}

func (e FlowEnd) String() string {
	return DropEnd{Pod: e.Pod, Node: e.Node, Address: e.Address}.String()
}
