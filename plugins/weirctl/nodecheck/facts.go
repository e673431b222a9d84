// Package nodecheck checks whether a node has what weir needs, and which other programs on it may get in weir's way.
// Judge is pure: it turns facts into findings. Read reads the facts. It tries features of the kernel in a network
// namespace of its own, so it changes nothing of the node.
package nodecheck

// Facts are what was read from a node. A fact that could not be read is in Unread.
type Facts struct {
	// Kernel is the kernel's release, such as 6.1.0-18-cloud-amd64.
	Kernel string `json:"kernel"`
	// Trials are the features that were tried.
	Trials []Trial `json:"trials"`
	// NoTrials says why no feature could be tried; empty if they were tried.
	NoTrials string `json:"noTrials,omitempty"`
	// Sysctls has the values of the sysctls that exist, by name.
	Sysctls map[string]string `json:"sysctls"`
	// Conflists are the files of /etc/cni/net.d, in the order in which the runtime reads them.
	Conflists []Conflist `json:"conflists"`
	// Links, Chains and Tables are the names of the node's network links, of iptables' chains, and of nftables' tables
	// (with their families).
	Links  []string `json:"links"`
	Chains []string `json:"chains"`
	Tables []string `json:"tables"`
	// VXLANs are the VXLAN devices.
	VXLANs []VXLAN `json:"vxlans,omitempty"`
	// Legacy are the tables of iptables-legacy that exist. NFT is true if kubelet's or kube-proxy's chains are in the
	// tables of iptables-nft.
	Legacy []string `json:"legacy"`
	NFT    bool     `json:"nft"`
	// Portmap is the version of the plugin portmap, such as 1.9.0; empty if it is missing.
	Portmap string `json:"portmap,omitempty"`
	// NoPlugins is true if the directory of the CNI plugins is missing, as it is in the agent's container.
	NoPlugins bool `json:"noPlugins,omitempty"`
	// ProxyMode is the mode of kube-proxy; empty if none answers.
	ProxyMode string `json:"proxyMode,omitempty"`
	// Agent is true if an agent's socket is on the node.
	Agent bool `json:"agent"`
	// Unread says what could not be read, and why.
	Unread []string `json:"unread,omitempty"`
}

// Trial is a feature of the kernel that was tried.
type Trial struct {
	Feature Feature `json:"feature"`
	// Error is the kernel's refusal; empty if the feature works.
	Error string `json:"error,omitempty"`
}

// Feature is a feature of the kernel.
type Feature string

// These are the features other than iptables' matches and targets. xtFeature names those.
const (
	Bridge    Feature = "a bridge with isolated ports"
	Veth      Feature = "veth"
	Tunnel    Feature = "vxlan"
	Guard     Feature = "nftables with a bridge family (the guard)"
	Sets      Feature = "ipset"
	Marks     Feature = "ipset with marks (skbinfo)"
	Conntrack Feature = "connection tracking over netlink"
	LogGroup  Feature = "NFLOG over netlink"
)

// Conflist is a file of the runtime's configuration.
type Conflist struct {
	File string `json:"file"`
	// Name is the network's, and Plugins are the types of its plugins.
	Name    string   `json:"name,omitempty"`
	Plugins []string `json:"plugins,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// VXLAN is a VXLAN device.
type VXLAN struct {
	Link string `json:"link"`
	Port int    `json:"port"`
	VNI  int    `json:"vni"`
}

// Severity says how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	Broken  Severity = "BROKEN"
	Warning Severity = "warning"
	Unknown Severity = "unknown"
	OK      Severity = "ok"
)

// Finding is what one or more facts mean.
type Finding struct {
	Severity Severity `json:"severity"`
	// What says in one line what was found.
	What string `json:"what"`
	// Mend says in one line how to mend it; empty if nothing is to be mended.
	Mend string `json:"mend,omitempty"`
}
