package conf

import "strings"

// The plugin and the agent must use the same names and numbers, and so must their later versions.
const (
	Bridge = "weir0"
	// Tunnel is the name of the VXLAN device to other nodes.
	Tunnel = "weir-vxlan"
	// GuardTable and PortsTable are the guard: the nftables table of the bridge family, and the tables of the families
	// inet and arp, that check packets from pods' ports.
	GuardTable = "weir"
	PortsTable = "weir-ports"
	// LinkLocalTable is the nftables table of the bridge family that drops packets from and to link-local addresses of
	// pods on other plugins' bridges.
	LinkLocalTable = "weir-link-local"
	// TunnelTable is the gate: the nftables table of the inet family that checks tunnel packets.
	TunnelTable = "weir-tunnel"
	// OverlayPort is the default UDP port of the tunnels: the port of VXLAN (RFC 7348, section 5).
	OverlayPort = 4789
	// OverlayVNI is the default VXLAN network identifier of weir's network (RFC 7348, section 5: 24 bits).
	OverlayVNI = 88
	// RouteProtocol marks weir's routes to other nodes' pods. The overlay changes no routes of other protocols.
	// iproute2's list of protocols doesn't have this number.
	RouteProtocol = 88
	// LogGroup is the netlink log group of packets that weir drops, or that audited policies would drop. Only
	// one program can read a group: the agent.
	LogGroup = 88
	// FlowTable is the nftables table of the inet family with the rules that log the first packets that policies have
	// allowed. It exists only while an agent records flows.
	FlowTable = "weir-flows"
	// FlowGroup is the netlink log group to which FlowTable's rules copy packets.
	FlowGroup = 89
	// FlowLogPrefix is the log text of FlowTable's rules.
	FlowLogPrefix = "weir flow"
	// LogPrefix begins the log text of each rule that drops packets. The name of the rule's chain follows, except in
	// the rules of the guard, the gate and LinkLocalTable (below).
	LogPrefix = "weir drop "
	// AuditLogPrefix begins the log text of rules for packets that audited policies would drop. The name of the
	// rule's chain follows.
	AuditLogPrefix = "weir audit "
	// GuardLogPrefix is the log text for frames with a forged address. The next five texts are for the guard's other
	// rules, and the two after them for the gate's rules.
	GuardLogPrefix     = LogPrefix + "guard"
	ReservedLogPrefix  = GuardLogPrefix + "-reserved"  // frames to a MAC that is reserved for bridges
	LoopbackLogPrefix  = GuardLogPrefix + "-loopback"  // packets to the node's loopback addresses
	FragmentsLogPrefix = GuardLogPrefix + "-fragments" // more fragments than the guard accepts
	DiscoveryLogPrefix = GuardLogPrefix + "-discovery" // neighbour discovery that pods may not send
	PastLogPrefix      = GuardLogPrefix + "-past"      // packets from a port to the node's IP stack, past the bridge
	TunnelLogPrefix    = LogPrefix + "gate-tunnel"     // forged tunnel packets, and packets of pods to the tunnels' port
	WayLogPrefix       = LogPrefix + "gate-way"        // packets from a pod's address, but by the wrong link or tunnel
	// LinkLocalLogPrefix is the log text of LinkLocalTable's rules for packets from pods. LinkLocalInLogPrefix is the
	// log text of the table's rules for packets to pods.
	LinkLocalLogPrefix   = LogPrefix + "link-local"
	LinkLocalInLogPrefix = LinkLocalLogPrefix + "-in"
	// CutLabel is the bit of a connection's label that marks the connection as cut: policies allowed it before, and
	// don't allow it any more.
	CutLabel = 127
	// MaxSetEntries is the largest number of entries of one of weir's sets. The kernel allocates memory only for
	// entries that exist.
	MaxSetEntries = 1 << 20
)

// maxComment is the largest length in bytes of a text that weir gives to a set's entry, a rule or a link, such as the
// pod's name.
const maxComment = 255

// Comment returns the text, shortened to maxComment bytes. It replaces characters that the kernel, a backend or a
// terminal could change (see isChanged) by question marks.
func Comment(text string) string {
	if strings.ContainsFunc(text, isChanged) {
		text = strings.Map(func(r rune) rune {
			if isChanged(r) {
				return '?'
			}
			return r
		}, text)
	}
	if len(text) > maxComment {
		const end = " ..."
		text = text[:maxComment-len(end)] + end
	}
	return text
}

// isChanged reports whether the kernel, a backend or a terminal could change the character or act on it.
func isChanged(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\'' || r == '\\' }

// Backend is the name of the backend with which the agent enforces policies on this node. It is empty while the
// backend is unknown.
type Backend string

const (
	Iptables Backend = "iptables"
	Nftables Backend = "nftables"
)
