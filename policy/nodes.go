package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// places says which addresses the pods of each node can have. Programs other than kubelet may write a pod's status. If
// policy used all addresses in a status, a node could write its own pod's address into the status of another node's
// pod. Then its own pod would have the other pod's rights.
type places struct {
	nodes map[string]Node
	self  string
	// unknown is true if the state has neither Nodes nor this node's name. Policies then use all addresses.
	unknown bool
}

func newPlaces(s State) places {
	p := places{nodes: make(map[string]Node, len(s.Nodes)), self: s.Node, unknown: len(s.Nodes) == 0 && s.Node == ""}
	for _, n := range s.Nodes {
		p.nodes[n.Name] = n
	}
	return p
}

// believed returns the addresses that policies may use for a pod without an endpoint on this node. If w.unknown is
// true, these are all addresses in the pod's status. Otherwise they are the addresses that are in a podCIDR of the
// pod's Node and in no podCIDR of this node. believed reports a problem for an address that policies may not use,
// unless the pod is on this node and the address is in this node's podCIDRs. Callers must not change the result.
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
	own := w.nodes[w.self].PodCIDRs
	doubted := func(a netip.Addr) bool { return !contains(node.PodCIDRs, a) || contains(own, a) }
	if !slices.ContainsFunc(p.Addresses, doubted) {
		return p.Addresses, nil // the usual case: policies may use all addresses of the pod
	}
	for _, a := range p.Addresses {
		switch {
		case !contains(node.PodCIDRs, a):
			report("status.podIPs", "%s is outside of the podCIDRs of the pod's Node %s; no policy uses it for the pod",
				a, node.Name)
		case !contains(own, a):
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

// readmit decides again which addresses policies use for the pods of changed Nodes (see believed). The function
// changed reports whether the Node of this name has changed.
func (e *Engine) readmit(changed func(node string) bool) {
	left := 0
	for node, pods := range e.placed {
		if changed(node) {
			left += pods
		}
	}
	if left == 0 { // most new Nodes have no pods
		return
	}
	for _, first := range e.pods.All() {
		for p := first; p != nil; p = p.next {
			if !p.isPlaced() || !changed(p.NodeName) {
				continue
			}
			if left--; !p.local {
				e.withdraw(p)
				e.admit(p)
			}
		}
		if left == 0 {
			return
		}
		e.settleSome()
	}
}

func (p *pod) isPlaced() bool { return len(p.Addresses) > 0 && !p.HostNetwork }

func (e *Engine) countPlaced(pods *pod, by int) {
	for p := pods; p != nil; p = p.next {
		if !p.isPlaced() {
			continue
		}
		if e.placed[p.NodeName] += by; e.placed[p.NodeName] == 0 {
			delete(e.placed, p.NodeName)
		}
	}
}
