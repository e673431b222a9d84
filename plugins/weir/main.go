// Command weir is the CNI plugin: it gives a container its link to the node's bridge, its addresses, and its place in
// the sets that policy is enforced by. The runtime calls it; see the CNI specification, "Section 2".
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check},
		version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0"), "weir: pod network and network policy")
}
