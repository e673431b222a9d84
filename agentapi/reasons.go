package agentapi

// Values of Drop.Reason.
const (
	// ByPolicy: policies isolate the pod, and none of them allows the packet.
	ByPolicy = "policy"
	// ByAudit: the packet passed. Audited policies would drop it if they were enforced.
	ByAudit = "audit"
	// ByClosed: the pod is in no class.
	ByClosed = "closed"
	// ByGuard: the pod has sent under a MAC or an address that is not its own, or a frame that is neither IPv4, IPv6 nor
	// ARP.
	ByGuard = "guard"
	// ByCut: the connection was cut, because the policies no longer allow it.
	ByCut = "cut"
	// ByMidstream: a TCP packet that begins no connection, and belongs to none that the node knows.
	ByMidstream = "midstream"
	// ByNoPod: to or from the pods' bridge, but no pod has the address.
	ByNoPod = "no-pod"
	// ByICMPError: an ICMP error of a pod about packets that did not come to the pod.
	ByICMPError = "icmp-error"
	// ByLoopback: from a pod to the loopback addresses of its node.
	ByLoopback = "loopback"
	// ByFragments: the pod sends more fragments than the node reassembles for it.
	ByFragments = "fragments"
	// ByDiscovery: the pod has sent a router or neighbour advertisement, or a redirect.
	ByDiscovery = "discovery"
	// ByReserved: to a MAC that is reserved for bridges.
	ByReserved = "reserved-mac"
	// ByPast: from the pod's port to the node's IP stack, past the bridge.
	ByPast = "past-bridge"
	// ByTunnel: a tunnel packet whose source or destination isn't a node, or whose inner sender is no pod of the
	// sending node. Also a pod's packet to the tunnels' port of a node.
	ByTunnel = "tunnel"
	// ByWay: the packet's source is a pod's address, but the packet came in on another link or tunnel than the one that
	// leads to that pod. Also a packet out of a tunnel, if packets to its source don't go into a tunnel.
	ByWay = "way"
	// ByOther: the rule that logged the packet is not one of this agent's.
	ByOther = "other"
)

// Reasons are the values of Drop.Reason, with what each means for a person who asks why the packets were dropped.
var Reasons = []struct{ Reason, Meaning string }{
	{ByPolicy, "policies isolate the pod, and none of them allows the packet"},
	{ByAudit, "it passed: audited policies would drop it"},
	{ByClosed, "the pod is closed, because it is in no class"},
	{ByCut, "the connection was cut, because the policies no longer allow it"},
	{ByMidstream, "a TCP packet of no connection that the node knows"},
	{ByNoPod, "no pod of the node has this address"},
	{ByICMPError, "an ICMP error about a packet that did not come to the pod"},
	{ByLoopback, "no pod may send to the loopback addresses of its node"},
	{ByGuard, "the pod may not send under this MAC or address"},
	{ByFragments, "more fragments than the node reassembles for its pods"},
	{ByDiscovery, "no pod may send router or neighbour advertisements or redirects"},
	{ByReserved, "no pod may send to a MAC that is reserved for bridges"},
	{ByPast, "it would reach the node's IP stack past the bridge"},
	{ByTunnel, "a tunnel packet that does not come from a node, or names no pod of that node"},
	{ByWay, "not by the link or the tunnel that leads to the pod with this address"},
	{ByOther, "a rule of another program"},
}

// ReasonMeans returns what the reason means. For an unknown reason it returns a text with the reason.
func ReasonMeans(reason string) string {
	for _, r := range Reasons {
		if r.Reason == reason {
			return r.Meaning
		}
	}
	return "reason: " + reason
}
