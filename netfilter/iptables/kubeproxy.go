package iptables

import (
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// kubeProxyChain is a chain of the table nat. kube-proxy has this chain in its modes iptables and ipvs, and deletes it
// in other modes. kubelet has no chain of this name.
const kubeProxyChain = "KUBE-SERVICES"

// KubeProxy reports whether kube-proxy has chains in either flavour of iptables.
//
// Equivalent to: iptables-nft -t nat -n -L KUBE-SERVICES, and likewise with iptables-legacy, ip6tables-nft and
// ip6tables-legacy
func KubeProxy() (bool, error) {
	r := nftnl.NewReader()
	defer r.Close()
	for _, f := range conf.Families {
		// A list of all chains would take too long, because kube-proxy may have tens of thousands of chains.
		_, _, err := r.Hook(tableOf(f, "nat"), kubeProxyChain)
		if err == nil {
			return true, nil
		}
		if !nftnl.IsMissing(err) {
			return false, err
		}
		chains, err := Legacy.chains(f, "nat")
		if there := slices.Contains(chains, kubeProxyChain); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// legacyChains returns the names of the table's chains in iptables-legacy, without the built-in chains.
func legacyChains(f conf.Family, name string) (names []string, err error) {
	t, err := readLegacy(f, name)
	for offset := uint32(0); err == nil && offset < uint32(len(t.entries)); {
		var e legacyEntry
		if e, err = t.entry(offset); err == nil {
			if begun, ok := e.begins(); ok {
				names = append(names, begun)
			}
			offset = e.next
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read table %s of %s: %w", name, Legacy.program(f), err)
	}
	return names, nil
}
