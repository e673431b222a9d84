package explain

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

var directions = [...]ruleset.Direction{ruleset.Egress, ruleset.Ingress}

func peersOf(np *networkingv1.NetworkPolicy, d ruleset.Direction) (all []networkingv1.NetworkPolicyPeer) {
	if d == ruleset.Egress {
		for _, r := range np.Spec.Egress {
			all = append(all, r.To...)
		}
		return all
	}
	for _, r := range np.Spec.Ingress {
		all = append(all, r.From...)
	}
	return all
}

// about returns the part of the state that decides on packets between the addresses. In a large cluster, evaluating the
// whole state would take seconds.
func (c *Cluster) about(addresses map[netip.Addr]bool) policy.State {
	s := policy.State{Node: c.Node}
	s.Nodes, s.Workloads = c.Nodes, c.Workloads
	type name struct{ namespace, name string }
	wanted := map[name]bool{}
	for _, e := range c.Endpoints {
		if slices.ContainsFunc(e.Addresses, func(a policy.Address) bool { return addresses[a.Addr] }) {
			wanted[name{e.Pod.Namespace, e.Pod.Name}] = true
		}
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		if slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return addresses[a] }) {
			wanted[name{p.Namespace, p.Name}] = true
		}
	}
	namespaces := map[string]bool{}
	for n := range wanted {
		namespaces[n.namespace] = true
	}
	for i := range c.Pods {
		if wanted[name{c.Pods[i].Namespace, c.Pods[i].Name}] {
			s.Pods = append(s.Pods, c.Pods[i])
		}
	}
	for _, e := range c.Endpoints {
		if wanted[name{e.Pod.Namespace, e.Pod.Name}] {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	for _, n := range c.Namespaces {
		if namespaces[n.Name] {
			s.Namespaces = append(s.Namespaces, n)
		}
	}
	for _, p := range c.Policies {
		if namespaces[p.Namespace] {
			s.Policies = append(s.Policies, p)
		}
	}
	return s
}

// Concerns returns a function that reports whether an explanation of the query may need a pod. c must have all
// Endpoints, but may lack pods. If c lacks a pod at an end of the query, the function can't report all pods that the
// explanation needs. Then give c the pods that the function reports, and call Concerns again.
func (q Query) Concerns(c Cluster) func(*policy.Pod) bool {
	addresses := Addresses(c, q)
	named := map[policy.Name]bool{}
	for _, e := range c.Endpoints {
		if slices.ContainsFunc(e.Addresses, func(a policy.Address) bool { return addresses[a.Addr] }) {
			named[policy.Name{Namespace: e.Pod.Namespace, Name: e.Pod.Name}] = true
		}
	}
	services := map[string]bool{} // namespaces of the Services among the query's ends
	for _, r := range c.ends(q) {
		if r.Kind == EndService {
			services[r.Namespace] = true
		}
	}
	homes := c.homes(q)
	toNode := q.To.Kind == EndNode || q.To.Kind == EndAddress
	return func(p *policy.Pod) bool {
		if services[p.Namespace] || toNode && slices.ContainsFunc(p.HostPorts, leadsFrom(netip.Addr{}, q.Port)) {
			return true
		}
		for _, selector := range homes[p.Namespace] {
			if selector.Matches(labels.Set(p.Labels)) {
				return true
			}
		}
		for _, r := range []Ref{q.From, q.To} {
			if r.Name != "" && (p.Namespace == r.Namespace || p.Name == r.Name) {
				return true
			}
		}
		return named[policy.Name{Namespace: p.Namespace, Name: p.Name}] ||
			slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return addresses[a] })
	}
}

// homes returns podSelectors of policies in other namespaces than the query's ends, by namespace. If such a
// podSelector matches an end, but no pod of the policy's own namespace, the explanation has a note about the policy.
// To find out whether it matches a pod of its own namespace, Concerns must ask for the pods that the podSelectors
// match.
func (c *Cluster) homes(q Query) map[string][]labels.Selector {
	all := map[string][]labels.Selector{}
	for _, r := range c.ends(q) {
		for i := range c.Pods {
			p := &c.Pods[i]
			isEnd := p.Namespace == r.Namespace && p.Name == r.Name
			switch r.Kind {
			case EndAddress:
				isEnd = slices.Contains(p.Addresses, r.Address)
			case EndService:
				s := labels.SelectorFromSet(c.service(r).Selector)
				isEnd = p.Namespace == r.Namespace && !s.Empty() && s.Matches(labels.Set(p.Labels))
			}
			if !isEnd {
				continue
			}
			for _, d := range directions {
				for np, selector := range c.strays(p, d) {
					all[np.Namespace] = append(all[np.Namespace], selector)
				}
			}
		}
	}
	return all
}

func (c *Cluster) ends(q Query) (ends []Ref) {
	from, err := c.resolve(q.From)
	if err == nil {
		ends = append(ends, from)
	}
	if to, err := c.resolveTo(q.To, q.Port, from); err == nil {
		ends = append(ends, to)
		if s, _ := c.nodePort(to, q.Port); s != nil {
			ends = append(ends, Ref{Kind: EndService, Namespace: s.Namespace, Name: s.Name})
		}
		if p, _ := c.hostPort(to, q.Port); p != nil {
			ends = append(ends, Ref{Kind: EndPod, Namespace: p.Namespace, Name: p.Name})
		}
	}
	return ends
}

// Addresses returns the known addresses of the query's ends, and of the pods behind Services among the ends.
func Addresses(c Cluster, q Query) map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, r := range []Ref{q.From, q.To} {
		if r.Kind == EndAddress {
			all[r.Address] = true
		}
	}
	for _, r := range c.ends(q) {
		if r.Kind == EndService {
			for _, e := range c.service(r).Endpoints {
				all[e.Address] = true
			}
			continue
		}
		places, err := c.places(r)
		if err != nil {
			continue
		}
		for _, p := range places {
			all[p.Address] = true
		}
	}
	return all
}
