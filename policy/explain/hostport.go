package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
)

func (c *Cluster) hostPort(to Ref, port Port) (*policy.Pod, policy.HostPort) {
	node, at := to.Name, netip.Addr{}
	if to.Kind == EndAddress {
		if p := c.placeOf(to.Address); p.isNode && !p.isTunnel {
			node, at = p.Node, to.Address
		}
	} else if to.Kind != EndNode {
		return nil, policy.HostPort{}
	}
	if node == "" || port.Number == 0 {
		return nil, policy.HostPort{}
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		if n := slices.IndexFunc(p.HostPorts, leadsFrom(at, port)); n >= 0 && p.NodeName == node && !p.Finished {
			return p, p.HostPorts[n]
		}
	}
	return nil, policy.HostPort{}
}

func leadsFrom(at netip.Addr, port Port) func(policy.HostPort) bool {
	return func(h policy.HostPort) bool {
		return h.Port == port.Number && h.Proto == port.Proto && (h.Address == at || !h.Address.IsValid() || !at.IsValid())
	}
}
