package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// places says where pods' addresses can be. A pod's status is written by its kubelet, and by whoever else may: what
// it claims is believed only as far as the Nodes bear it out, or else one node could give its pods the place of any
// other's.
type places struct {
	nodes map[string]Node
	self  string
	// unknown: there are no nodes to go by, as in a directory of manifests without any.
	unknown bool
}

func newPlaces(s State) places {
	p := places{nodes: make(map[string]Node, len(s.Nodes)), self: s.Node, unknown: len(s.Nodes) == 0 && s.Node == ""}
	for _, n := range s.Nodes {
		p.nodes[n.Name] = n
	}
	return p
}

// believed are the addresses of a pod that isn't attached to this node, as far as they can be its own: they lie
// within its Node's podCIDRs, and not within this node's, whose pods' addresses are those of its endpoints. What
// isn't believed is reported, unless the pod is one of this node's that has come or gone and is no endpoint.
func (w places) believed(p Pod) (addrs []netip.Addr, problems []ruleset.Problem) {
	if w.unknown || len(p.Addresses) == 0 {
		return p.Addresses, nil
	}
	report := func(field, format string, args ...any) {
		problems = append(problems, ruleset.Problem{
			Object: "Pod " + p.Namespace + "/" + p.Name, Field: field, Message: fmt.Sprintf(format, args...),
		})
	}
	node, ok := w.nodes[p.NodeName]
	switch {
	case !ok:
		report("spec.nodeName",
			"there is no Node %q, so it is unknown whether %s is the pod's address; no policy uses it for the pod",
			p.NodeName, p.Addresses[0])
		return nil, problems
	case len(node.PodCIDRs) == 0:
		report("spec.nodeName",
			"Node %s has no podCIDRs, so it is unknown whether %s is the pod's address; no policy uses it for the pod",
			node.Name, p.Addresses[0])
		return nil, problems
	}
	for _, a := range p.Addresses {
		switch {
		case !contains(node.PodCIDRs, a):
			report("status.podIPs", "%s is outside of the podCIDRs of the pod's Node %s; no policy uses it for the pod",
				a, node.Name)
		case !contains(w.nodes[w.self].PodCIDRs, a):
			addrs = append(addrs, a)
		case node.Name != w.self:
			report("status.podIPs",
				"%s is within the podCIDRs of this node, but the pod's Node is %s; no policy uses it for the pod", a, node.Name)
		}
	}
	return addrs, problems
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
