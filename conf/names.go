package conf

import "strings"

// Names of kernel objects that the plugin and the agent must agree on.
const (
	// Bridge is the node's bridge.
	Bridge = "weir0"
	// Tunnel is the node's VXLAN device, over which pods on other nodes are reached.
	Tunnel = "weir-vxlan"
	// TunnelTable is the nftables table of the inet family that says which packets may be tunnels', and what may come
	// out of them.
	TunnelTable = "weir-tunnel"
	// OverlayPort is the UDP port of the tunnels where none is given (VXLAN's own; RFC 7348, section 5).
	OverlayPort = 4789
	// OverlayVNI tells weir's network from others' on the same port, where none is given (RFC 7348, section 5: 24
	// bits).
	OverlayVNI = 88
	// RouteProtocol marks weir's routes to other nodes' pods, so that those of others in the same table are left alone
	// (rtnetlink(7); below 256, not in iproute2's list).
	RouteProtocol = 88
	// CutLabel is the bit of a connection's label (conntrack has 128) that says a later change of policy cut it.
	CutLabel = 127
	// MaxSetEntries is how much one of weir's ipsets holds (its maxelem). A cluster of the size that Kubernetes is made for
	// has 150,000 pods, so no set of a real one meets it; memory is taken as a set grows.
	MaxSetEntries = 1 << 20
)

// MaxComment is the longest text in bytes that the kernel keeps with a set's entry (IPSET_MAX_COMMENT_SIZE), a rule
// (xt_comment: 256 with the final NUL) and a link (IFALIASZ: the same). The kernel refuses an entry or a link with
// more.
const MaxComment = 255

// Comment makes of any text one that the kernel keeps unchanged beside an object: what is read back equals what was
// written, and a terminal shows nothing but letters. A namespace and a pod's name together may have 317 bytes.
func Comment(text string) string {
	if strings.ContainsFunc(text, unkept) {
		text = strings.Map(func(r rune) rune {
			if unkept(r) {
				return '?'
			}
			return r
		}, text)
	}
	if len(text) > MaxComment {
		const end = " ..."
		text = text[:MaxComment-len(end)] + end
	}
	return text
}

// unkept says whether the kernel, iptables or a terminal changes the letter. iptables-save puts a backslash before quotes.
func unkept(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\'' || r == '\\' }
