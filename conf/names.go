package conf

// Names of kernel objects that the plugin and the agent must agree on.
const (
	// Bridge is the node's bridge.
	Bridge = "weir0"
	// PodsSet is the ipset with the addresses of every pod on the node: what is in it is dropped unless a class lets
	// it through.
	PodsSet = "weir-pods"
	// Tunnel is the node's VXLAN device, over which pods on other nodes are reached.
	Tunnel = "weir-vxlan"
	// OverlayPort is the UDP port of the tunnels (VXLAN's own; RFC 7348, section 5).
	OverlayPort = 4789
	// CutLabel is the bit of a connection's label (conntrack has 128) that says a later change of policy cut it.
	CutLabel = 127
)
