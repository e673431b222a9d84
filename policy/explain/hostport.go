package explain

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy"
)

func (c *Cluster) hostPort(to Ref, port Port) (*policy.Pod, policy.HostPort) {
	node, at, own := to.Name, netip.Addr{}, false
	if to.Kind == EndAddress {
		if p := c.placeOf(to.Address); p.isNode && !p.isTunnel {
			node, at, own = p.Node, to.Address, p.isOwn
		}
	} else if to.Kind != EndNode {
		return nil, policy.HostPort{}
	}
	if node == "" && !own || port.Number == 0 {
		return nil, policy.HostPort{}
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		// A pod of a manifest has no node, and an agent without Kubernetes may not know its own node's name. A pod without
		// a node is on the agent's node if it has an endpoint.
		on := node != "" && p.NodeName == node || own && p.NodeName == "" && c.isHere(p)
		if n := slices.IndexFunc(p.HostPorts, leadsFrom(at, port)); n >= 0 && on && !p.Finished {
			return p, p.HostPorts[n]
		}
	}
	return nil, policy.HostPort{}
}

func (c *Cluster) isHere(p *policy.Pod) bool {
	return slices.ContainsFunc(c.Endpoints, func(e policy.Endpoint) bool {
		return e.Pod.Namespace == p.Namespace && e.Pod.Name == p.Name
	})
}

func leadsFrom(at netip.Addr, port Port) func(policy.HostPort) bool {
	return func(h policy.HostPort) bool {
		return h.Port == port.Number && h.Proto == port.Proto && (h.Address == at || !h.Address.IsValid() || !at.IsValid())
	}
}
