package explain

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
)

// outside has addresses that can stand for hosts outside of the cluster: addresses for documentation, then public ones.
var outside = [...][]netip.Addr{
	conf.IPv4: {
		netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("1.1.1.1"),
	},
	conf.IPv6: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2606:4700:4700::1111")},
}

// The variable public has the networks of hosts outside of clusters. The variable reserved has networks within public
// that have no such hosts.
var (
	public = [...]netip.Prefix{
		conf.IPv4: netip.MustParsePrefix("0.0.0.0/0"), conf.IPv6: netip.MustParsePrefix("2000::/3"),
	}
	reserved = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("2002::/16"),
	}
)

// worldPlaces returns an address of each family that stands for all hosts outside of the cluster. If possible, the
// address is in no network of an ipBlock, except 0.0.0.0/0 and ::/0, which contain all addresses. If the networks leave
// no address, the widest of them are ignored too.
func (c *Cluster) worldPlaces() (all []Place) {
	blocks, own := c.blocks(), c.ownNetworks()
	for f, candidates := range outside {
		a := freeAddress(conf.Family(f), candidates, blocks, own)
		all = append(all, Place{Address: a, What: "stands for any address outside of the cluster", isWorld: true})
	}
	return all
}

func freeAddress(f conf.Family, candidates []netip.Addr, blocks, own []netip.Prefix) netip.Addr {
	widest := 0 // networks with this prefix length or a shorter one are ignored
	counts := func(p netip.Prefix) bool { return p.Bits() > widest }
	for _, a := range candidates {
		has := func(p netip.Prefix) bool { return p.Contains(a) }
		named := func(p netip.Prefix) bool { return counts(p) && has(p) }
		if !slices.ContainsFunc(own, has) && !slices.ContainsFunc(blocks, named) {
			return a
		}
	}
	for ; widest < candidates[0].BitLen(); widest++ {
		var free netipx.IPSetBuilder
		free.AddPrefix(public[f])
		for _, p := range slices.Concat(reserved, own) {
			free.RemovePrefix(p)
		}
		for _, p := range blocks {
			if counts(p) {
				free.RemovePrefix(p)
			}
		}
		set, err := free.IPSet()
		if err != nil || len(set.Ranges()) == 0 {
			continue
		}
		for _, a := range candidates {
			if set.Contains(a) {
				return a
			}
		}
		first := set.Ranges()[0]
		if second := first.From().Next(); first.Contains(second) { // first.From() may be a network address, which no host has
			return second
		}
		return first.From()
	}
	return candidates[0]
}

// ownNetworks returns the addresses of the cluster's nodes, pods and Services, and the nodes' podCIDRs.
func (c *Cluster) ownNetworks() (all []netip.Prefix) {
	add := func(addresses ...netip.Addr) {
		for _, a := range addresses {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	add(c.Own...)
	for _, n := range c.Nodes {
		add(n.Addresses...)
		for _, p := range n.PodCIDRs {
			all = append(all, p.Masked())
		}
	}
	for i := range c.Pods {
		add(c.Pods[i].Addresses...)
	}
	for _, e := range c.Endpoints {
		for _, a := range e.Addresses {
			add(a.Addr)
		}
	}
	for i := range c.Services {
		s := &c.Services[i]
		add(slices.Concat(s.ClusterIPs, s.External, s.Balancer, s.Proxied)...)
	}
	return all
}

func (c *Cluster) blocks() (all []netip.Prefix) {
	for _, np := range c.Policies {
		for _, d := range directions {
			for _, p := range peersOf(np, d) {
				if p.IPBlock == nil {
					continue
				}
				for _, text := range append([]string{p.IPBlock.CIDR}, p.IPBlock.Except...) {
					if cidr, err := netip.ParsePrefix(text); err == nil {
						all = append(all, cidr.Masked())
					}
				}
			}
		}
	}
	return all
}
