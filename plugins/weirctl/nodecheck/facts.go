// Package nodecheck checks whether a node has everything that weir needs, and whether other programs disturb weir. Read
// reads facts, and Findings turns them into findings.
//
// Invariants:
//   - Read changes nothing on the node, but the kernel may load modules: features are tried in a network namespace that
//     the kernel removes afterwards.
//   - The findings depend only on the facts.
//   - Each fact that could not be read becomes a finding with the severity unknown.
package nodecheck

// Facts are what Read has found on a node. Unread says what could not be read.
type Facts struct {
	// Kernel is the kernel's release, such as 6.1.0-18-cloud-amd64.
	Kernel string  `json:"kernel"`
	Trials []Trial `json:"trials"`
	// NoTrials says why no feature could be tried. It is empty if the features were tried.
	NoTrials string `json:"noTrials,omitempty"`
	// Sysctls has the values of sysctls, by name. A sysctl that doesn't exist is left out.
	Sysctls map[string]string `json:"sysctls"`
	// Conflists are the files of /etc/cni/net.d, in the runtime's order.
	Conflists []Conflist `json:"conflists"`
	// Links are the names of network links. Chains are the names of chains of nftables (ip and ip6) and of
	// iptables-legacy. Tables are the families and names of nftables' tables, such as "inet filter".
	Links  []string `json:"links"`
	Chains []string `json:"chains"`
	Tables []string `json:"tables"`
	VXLANs []VXLAN  `json:"vxlans,omitempty"`
	// Legacy are the tables of iptables-legacy that exist. NFT means that iptables-nft has kubelet's chains.
	Legacy []string `json:"legacy"`
	NFT    bool     `json:"nft"`
	// Portmap is the version of the plugin portmap, such as 1.9.0. It is empty if portmap is missing.
	Portmap string `json:"portmap,omitempty"`
	// NoPlugins means that the directory of the CNI plugins is missing, as in the agent's container.
	NoPlugins bool `json:"noPlugins,omitempty"`
	// ProxyMode is the mode of kube-proxy. It is empty if no kube-proxy answers.
	ProxyMode string `json:"proxyMode,omitempty"`
	// Agent means that an agent's socket is on the node.
	Agent  bool     `json:"agent"`
	Unread []string `json:"unread,omitempty"`
}

type Trial struct {
	Feature Feature `json:"feature"`
	// Error is the kernel's refusal. It is empty if the feature works.
	Error string `json:"error,omitempty"`
}

type Feature string

// The features that Read tries, besides iptables' matches and targets. The function xtFeature returns the feature
// for a match or target.
const (
	Bridge    Feature = "a bridge with isolated ports"
	Veth      Feature = "veth"
	Tunnel    Feature = "vxlan"
	Guard     Feature = "nftables with a bridge family (the guard)"
	Sets      Feature = "ipset"
	Marks     Feature = "ipset with marks (skbinfo)"
	Conntrack Feature = "connection tracking over netlink"
	LogGroup  Feature = "NFLOG over netlink"
	Native    Feature = "rules and sets of nftables"
)

// Conflist is a file of the runtime's network configuration.
type Conflist struct {
	File string `json:"file"`
	// Name is the network's name. Plugins are the types of its plugins.
	Name    string   `json:"name,omitempty"`
	Plugins []string `json:"plugins,omitempty"`
	// Weir means that a runtime with this configuration starts pods with weir.
	Weir  bool   `json:"weir,omitempty"`
	Error string `json:"error,omitempty"`
}

type VXLAN struct {
	Link string `json:"link"`
	Port int    `json:"port"`
	VNI  int    `json:"vni"`
}

type Severity string

// The severities, the worst first.
const (
	Broken  Severity = "BROKEN"
	Warning Severity = "warning"
	Unknown Severity = "unknown"
	OK      Severity = "ok"
)

type Finding struct {
	Severity Severity `json:"severity"`
	// What says in one line what was found.
	What string `json:"what"`
	// Mend says in one line how to mend the fault. It may be empty.
	Mend string `json:"mend,omitempty"`
}
