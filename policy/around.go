package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Around returns the objects that decide whether packets between the addresses are allowed: endpoints, pods,
// namespaces and policies. The caller must not change the objects.
func (e *Engine) Around(addresses []netip.Addr) State {
	var s State
	wanted := map[netip.Addr]bool{}
	for _, a := range addresses {
		wanted[a] = true
	}
	added, namespaces := map[*pod]bool{}, map[string]bool{}
	add := func(p *pod) {
		if added[p] {
			return
		}
		added[p], namespaces[p.Namespace] = true, true
		of := *p.Pod
		of.Addresses = slices.DeleteFunc(slices.Clone(p.addresses), func(a netip.Addr) bool {
			return !e.addresses.uses(p, a)
		})
		s.Pods = append(s.Pods, of)
	}
	for _, n := range e.endpoints {
		if !slices.ContainsFunc(n.Addresses, func(a Address) bool { return wanted[a.Addr] }) {
			continue
		}
		s.Endpoints = append(s.Endpoints, n)
		for p := e.pods.Get(n.Pod.name()); p != nil; p = p.next {
			add(p)
		}
	}
	for a := range wanted {
		for _, p := range e.addresses.users(a) {
			add(p)
		}
	}
	for name := range namespaces {
		n := e.spaces[name]
		if n == nil {
			continue
		}
		if n.object.Name != "" {
			s.Namespaces = append(s.Namespaces, n.object)
		}
		for _, policies := range n.policies {
			for i := range policies {
				s.Policies = append(s.Policies, policies[i].NetworkPolicy)
			}
		}
	}
	return s
}

// HasAddress reports whether a pod has the address, in its endpoint on this node or in its status. Pods with
// hostNetwork don't count. Addresses that the pod's Node can't assign don't count either.
func (e *Engine) HasAddress(a netip.Addr) bool { return len(e.addresses.all(a)) > 0 }

// PodsAt returns the pods that have the address, as NAMESPACE/NAME with commas between them. If an endpoint of this
// node has the address, PodsAt returns only pods of this node. If no pod has the address, it returns "".
func (e *Engine) PodsAt(a netip.Addr) string {
	var names []string
	for _, p := range e.addresses.users(a) {
		names = append(names, comment(p.Pod))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
