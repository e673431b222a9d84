package nodecheck

import "strings"

type network struct {
	name string
	// These are patterns of the names of the network's links, chains and tables: see the function matches.
	links, chains, tables []string
	severity              Severity
	mend                  string
}

const rebootAfter = "delete its DaemonSet and its files in /etc/cni/net.d, then restart the node"

// foreign are other pod networks and kube-proxy's IPVS mode. They disturb weir if they enforce policies or route
// pods' packets.
var foreign = []network{
	{
		name: "Cilium", links: []string{"cilium_*", "lxc*"}, chains: []string{"CILIUM_*"}, tables: []string{"* cilium*"},
		severity: Warning, mend: rebootAfter,
	},
	{
		name: "Calico", links: []string{"cali*", "vxlan.calico", "vxlan-v6.calico"}, chains: []string{"cali-*"},
		tables: []string{"* calico"}, severity: Warning, mend: rebootAfter,
	},
	{
		name: "Flannel", links: []string{"flannel*", "cni0"}, chains: []string{"FLANNEL-*"}, severity: Warning,
		mend: rebootAfter,
	},
	{
		name: "Weave Net", links: []string{"weave", "vethwe*", "datapath"}, chains: []string{"WEAVE*"}, severity: Warning,
		mend: rebootAfter,
	},
	{
		name: "kube-router", links: []string{"kube-bridge", "kube-dummy-if"},
		chains:   []string{"KUBE-ROUTER-*", "KUBE-POD-FW-*", "KUBE-NWPLCY-*"},
		severity: Warning, mend: rebootAfter,
	},
	{
		name: "Antrea", links: []string{"antrea-*", "ovs-system"}, chains: []string{"ANTREA-*"}, severity: Warning,
		mend: rebootAfter,
	},
	{name: "OVN-Kubernetes", links: []string{"ovn-k8s-*"}, severity: Warning, mend: rebootAfter},
	{
		name: "kube-network-policies or kindnet", tables: []string{"inet kindnet*", "inet kube-network-policies"},
		severity: Warning, mend: "delete its DaemonSet, then restart the node",
	},
	{
		name: "the AWS VPC CNI", links: []string{"eni*", "pod-id-link*"}, chains: []string{"AWS-SNAT-*", "AWS-CONNMARK-*"},
		severity: Warning, mend: rebootAfter,
	},
	{
		name: "kube-proxy's IPVS mode", links: []string{"kube-ipvs0"}, severity: Warning,
		mend: "run kube-proxy --cleanup, or restart the node",
	},
}

// matches compares the name with the pattern. A star at the end stands for any text. A star and a space at the
// beginning stand for any first word.
func matches(name, pattern string) bool {
	if rest, any := strings.CutPrefix(pattern, "* "); any {
		_, word, ok := strings.Cut(name, " ")
		return ok && matches(word, rest)
	}
	if begin, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(name, begin)
	}
	return name == pattern
}
