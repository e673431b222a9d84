package agentapi

// Values of Drop.Reason.
const (
	// ByPolicy means that policies isolate the pod, and none of them allows the packet.
	ByPolicy = "policy"
	// ByAudit means that the packet passed. Audited policies would drop it if they were enforced.
	ByAudit  = "audit"
	ByClosed = "closed"
	// ByGuard means that the pod has sent under a MAC or an address that isn't its own, or a frame that is not IPv4,
	// IPv6 or ARP.
	ByGuard = "guard"
	// ByCut means that the connection was cut, because the policies no longer allow it.
	ByCut = "cut"
	// ByMidstream means that a TCP packet belongs to no connection that the node knows, and isn't a SYN that begins one.
	ByMidstream = "midstream"
	// ByNoPod means that a packet came from weir0 with a source address that belongs to no pod, or went to weir0 with a
	// destination address that belongs to no pod.
	ByNoPod = "no-pod"
	// ByICMPError means that a pod has sent an ICMP error about a packet that it did not receive.
	ByICMPError = "icmp-error"
	// ByLoopback means that a pod has sent to a loopback address.
	ByLoopback = "loopback"
	// ByFragments means that the pod sends more fragments than the guard accepts.
	ByFragments = "fragments"
	// ByDiscovery means that the pod has sent a router advertisement, a neighbour advertisement or a redirect.
	ByDiscovery = "discovery"
	// ByReserved means that the destination MAC is one of 01:80:c2:00:00:00 to :ff. These MACs are reserved for bridges.
	ByReserved = "reserved-mac"
	// ByPast means that the packet went from the pod's port to the node's IP stack without crossing the bridge.
	ByPast = "past-bridge"
	// ByTunnel means that a tunnel packet is forged or isn't between the InternalIPs of two nodes, or that a pod has
	// sent a packet to the UDP port of the tunnel on a host that isn't a pod.
	ByTunnel = "tunnel"
	// ByWrongLink means that a packet didn't come in on the link or tunnel that leads to its source address.
	ByWrongLink = "wrong-link"
	// ByLinkLocal means that a pod on another plugin's bridge has sent a packet from or to an IPv6 link-local address, or
	// that a host on the bridge has sent a packet to the pod's link-local address.
	ByLinkLocal = "link-local"
	// ByOther means that a rule of another program, or of another version of weir, logged the packet.
	ByOther = "other"
)

// Reasons lists the values of Drop.Reason with their meanings, in words for people.
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
	{ByTunnel, "a tunnel packet that does not come from a node, or carries a packet that isn't from a pod of that node"},
	{ByWrongLink, "not by the link or the tunnel that leads to the pod with this address"},
	{ByLinkLocal, "no pod may use link-local addresses on another plugin's bridge"},
	{ByOther, "a rule of another program"},
}

// ReasonMeans returns the meaning of the reason. A later agent may have reasons that this weirctl doesn't know: for
// these, it returns "reason: " and the reason.
func ReasonMeans(reason string) string {
	for _, r := range Reasons {
		if r.Reason == reason {
			return r.Meaning
		}
	}
	return "reason: " + reason
}
