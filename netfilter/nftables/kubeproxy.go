package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/nftnl"
)

// KubeProxy reports whether kube-proxy has tables in nftables.
//
// Equivalent to: nft list table ip kube-proxy || nft list table ip6 kube-proxy
func KubeProxy() (bool, error) {
	r := nftnl.NewReader()
	defer r.Close()
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		switch _, err := r.Table(nftnl.Table{Family: family, Name: "kube-proxy"}); {
		case err == nil:
			return true, nil
		case !nftnl.IsMissing(err):
			return false, err
		}
	}
	return false, nil
}
