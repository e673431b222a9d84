package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

func corner(r *rand.Rand, s *policy.State) {
	switch r.IntN(9) {
	case 0, 1:
		changePod(r, s, func(p *policy.Pod) { crampAddresses(r, p) })
	case 2:
		addEndpoint(r, s)
	case 3: // another pod of the same name, usually with another UID
		if len(s.Pods) > 0 {
			p := pick(r, s.Pods)
			p.Labels, p.UID, p.Addresses = labels(r), pick(r, []string{"", "one", "two", "three"}), []netip.Addr{cramped(r)}
			s.Pods = append(s.Pods, p)
		}
	case 4:
		changePod(r, s, func(p *policy.Pod) { p.HostNetwork = !p.HostNetwork })
	case 5:
		emptyNamespace(r, s, pick(r, namespaces))
	case 6: // removes all endpoints whose first address is of one family, and a third of the others
		f := pick(r, conf.Families[:])
		s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e policy.Endpoint) bool {
			return r.IntN(3) == 0 || len(e.Addresses) > 0 && conf.FamilyOf(e.Addresses[0].Addr) == f
		})
	case 7:
		s.Nodes = nodes(r, []conf.Family{pick(r, conf.Families[:])})
	case 8:
		scale(r, s)
	}
}

func cramped(r *rand.Rand) netip.Addr {
	of := Of[pick(r, conf.Families[:])]
	return at(pick(r, []netip.Prefix{of.Subnet, of.Elsewhere, of.Elsewhere}), 2+r.IntN(4))
}

func crampAddresses(r *rand.Rand, p *policy.Pod) {
	p.Addresses = nil
	for range r.IntN(4) {
		p.Addresses = append(p.Addresses, cramped(r))
	}
	if len(p.Addresses) > 0 && r.IntN(3) == 0 {
		p.Addresses = append(p.Addresses, p.Addresses[0])
	}
	if r.IntN(2) == 0 {
		p.NodeName = there
	}
}

func addEndpoint(r *rand.Rand, s *policy.State) {
	e := policy.Endpoint{
		ID: fmt.Sprint("n", r.IntN(4)), Enforcement: conf.Strict,
		Pod: policy.PodRef{Namespace: pick(r, namespaces), Name: "w-bcdfg"},
	}
	if len(s.Pods) > 0 && r.IntN(4) > 0 {
		p := pick(r, s.Pods)
		e.Pod = policy.PodRef{Namespace: p.Namespace, Name: p.Name, UID: pick(r, []string{p.UID, "one", "three"})}
	}
	for range r.IntN(3) {
		a := cramped(r)
		e.Addresses = append(e.Addresses, policy.Address{Addr: a, Subnet: netip.PrefixFrom(a, a.BitLen())})
	}
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(o policy.Endpoint) bool { return o.ID == e.ID })
	s.Endpoints = append(s.Endpoints, e)
}

func emptyNamespace(r *rand.Rand, s *policy.State, name string) {
	if r.IntN(4) == 0 {
		s.Pods = slices.DeleteFunc(s.Pods, func(p policy.Pod) bool { return p.Namespace == name })
	}
	if r.IntN(2) == 0 {
		s.Policies = slices.DeleteFunc(s.Policies, func(p *networkingv1.NetworkPolicy) bool { return p.Namespace == name })
	}
	if r.IntN(2) == 0 {
		s.Namespaces = slices.DeleteFunc(s.Namespaces, func(n policy.Namespace) bool { return n.Name == name })
	}
}

func scale(r *rand.Rand, s *policy.State) {
	if len(s.Pods) > 20 {
		s.Pods = slices.DeleteFunc(s.Pods, func(policy.Pod) bool { return r.IntN(2) == 0 })
		return
	}
	namespace, labels, of := pick(r, namespaces), labels(r), Of[pick(r, conf.Families[:])]
	for i := range r.IntN(25) {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: namespace, Name: fmt.Sprint("m", i), NodeName: there, Labels: labels, Ports: named(r),
			Addresses: []netip.Addr{at(of.Elsewhere, 20+i)},
		})
	}
}
