// Package policytest makes random clusters and large policies for tests. The clusters are small enough to be read when
// a test fails. Shrink makes a failing cluster smaller.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Addresses has the addresses and networks of one family in random clusters.
type Addresses struct {
	// Outside is an address outside of the cluster. Node is this node's own address.
	Outside, Node netip.Addr
	// Subnet is the network of this node's pods. Elsewhere is the network of the other node's pods.
	Subnet, Elsewhere netip.Prefix
	both, third       netip.Prefix // both contains Subnet and Elsewhere; third belongs to no node
}

// Of has the addresses of random clusters, by family.
var Of = [...]Addresses{
	conf.IPv4: {
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"),
		netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("10.88.1.0/24"),
		netip.MustParsePrefix("10.88.0.0/23"), netip.MustParsePrefix("10.88.9.0/24"),
	},
	conf.IPv6: {
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
		netip.MustParsePrefix("fd00:10:88::/64"), netip.MustParsePrefix("fd00:10:88:1::/64"),
		netip.MustParsePrefix("fd00:10:88::/63"), netip.MustParsePrefix("fd00:10:88:9::/64"),
	},
}

func local(a netip.Addr) bool { return Of[conf.FamilyOf(a)].Subnet.Contains(a) }

var (
	namespaces = []string{"x", "xa", "z"}
	keys       = []string{"a", "b", "ab"}
	values     = []string{"1", "2", ""}
	numbers    = []int32{80, 81, 83, 443}
	portNames  = []string{"http", "alt", "gone"} // no pod has a port "gone"
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	blocks     = []string{
		"0.0.0.0/0", "10.88.0.0/15", "10.88.0.0/24", "10.88.0.0/29", "10.88.0.4/30", "10.88.0.6/31", "10.88.1.0/24",
		"192.0.2.0/24", "10.88.0.2/32",
		"128.0.0.0/1", "::/0", "fd00:10:88::/63", "fd00:10:88::/64", "fd00:10:88::/125", "fd00:10:88::4/126",
		"fd00:10:88::6/127", "fd00:10:88:1::/64",
		"2001:db8::/64", "fd00:10:88::2/128", "8000::/1",
	}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func stack(r *rand.Rand) []conf.Family {
	return pick(r, [][]conf.Family{{conf.IPv4}, {conf.IPv6}, {conf.IPv4, conf.IPv6}, {conf.IPv6, conf.IPv4}})
}

// State returns a random cluster of up to three namespaces, eight pods and five policies. Most pods are on this node.
func State(r *rand.Rand) policy.State {
	var s policy.State
	families := stack(r)
	for i, name := range namespaces {
		if i == 2 && r.IntN(10) == 0 {
			break // an agent may learn of pods before it learns of their namespace
		}
		s.Namespaces = append(s.Namespaces, policy.Namespace{Name: name, Labels: labels(r), Unknown: unknown(r)})
	}
	// One cluster of five has no Nodes, like a directory without manifests of Nodes.
	if r.IntN(5) > 0 {
		s.Nodes = nodes(r, families)
	}
	if r.IntN(4) > 0 {
		s.Node = here
	}
	for i := range 2 + r.IntN(7) {
		addPod(r, &s, i, families)
	}
	for i := range r.IntN(6) {
		s.Policies = append(s.Policies, Policy(r, i))
	}
	return s
}

const here, there = "here", "there"

func nodes(r *rand.Rand, families []conf.Family) []policy.Node {
	cidrs := func(usual func(Addresses) netip.Prefix) (all []netip.Prefix) {
		for _, f := range families {
			switch r.IntN(10) {
			case 0:
			case 1:
				all = append(all, Of[f].both)
			case 2:
				few := usual(Of[f])
				all = append(all, netip.PrefixFrom(few.Addr(), few.Addr().BitLen()-3), Of[f].third)
			default:
				all = append(all, usual(Of[f]))
			}
		}
		return all
	}
	all := []policy.Node{
		{Name: there, PodCIDRs: cidrs(func(a Addresses) netip.Prefix { return a.Elsewhere })},
		{Name: here, PodCIDRs: cidrs(func(a Addresses) netip.Prefix { return a.Subnet })},
	}
	return all[r.IntN(10)/9:]
}

func at(network netip.Prefix, n int) netip.Addr {
	b := network.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func addPod(r *rand.Rand, s *policy.State, i int, families []conf.Family) {
	if r.IntN(10) == 0 {
		families = stack(r)
	}
	p := policy.Pod{
		Namespace:   pick(r, namespaces),
		Name:        fmt.Sprint("p", i),
		Labels:      labels(r),
		Unknown:     unknown(r),
		HostNetwork: r.IntN(20) == 0,
		Finished:    r.IntN(20) == 0,
	}
	p.UID = pick(r, []string{"", "one", "two"})
	p.NodeName = here
	elsewhere := r.IntN(4) == 0
	if elsewhere {
		p.NodeName = there
	}
	if r.IntN(10) == 0 {
		p.NodeName = pick(r, []string{here, there, "gone", ""})
	}
	var attached []policy.Address
	for _, f := range families {
		network := Of[f].Subnet
		if elsewhere {
			network = Of[f].Elsewhere
		}
		p.Addresses = append(p.Addresses, at(network, 2+i))
		attached = append(attached, policy.Address{Addr: at(network, 2+i), Subnet: network})
	}
	p.Ports = named(r)
	// The status may be out of date: it may lack an address, or have one that now belongs to another pod.
	switch r.IntN(20) {
	case 0:
		p.Addresses = nil
	case 1, 2:
		other := 2 + r.IntN(8)
		for j, f := range families {
			p.Addresses[j] = at(Of[f].Subnet, other)
		}
	case 3:
		p.Addresses = p.Addresses[:1]
	}
	if p.HostNetwork {
		own := Of[families[0]]
		p.Addresses = []netip.Addr{pick(r, []netip.Addr{own.Node, own.Outside})}
	}
	s.Pods = append(s.Pods, p)
	if elsewhere || p.HostNetwork || r.IntN(10) == 0 {
		return
	}
	e := policy.Endpoint{
		ID:          p.Name + ":eth0",
		Enforcement: conf.Strict,
		Pod:         policy.PodRef{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Addresses:   attached,
	}
	switch r.IntN(20) {
	case 0:
		e.Pod.Name = "unknown"
	case 1:
		e.Pod.UID = "another"
	case 2:
		e.Pod.UID = ""
	case 3:
		e.Enforcement = conf.Off
	}
	if kind := KindOf(i); kind != OnWeir {
		e.Chained, e.HostIf = true, fmt.Sprint("veth", i)
		if kind == OnBridge {
			e.BridgeIf = Bridge
		}
		for i, a := range e.Addresses { // the record of a chained attachment has each address with the subnet /32 or /128
			e.Addresses[i] = policy.Address{Addr: a.Addr, Subnet: netip.PrefixFrom(a.Addr, a.Addr.BitLen())}
		}
	}
	s.Endpoints = append(s.Endpoints, e)
}

type Kind int

// A pod is on weir's bridge, on a link of another plugin (as ptp makes it), or on another plugin's bridge.
const (
	OnWeir Kind = iota
	OnLink
	OnBridge
)

// Bridge is the bridge to which the links of all OnBridge pods belong.
const Bridge = "cni0"

func KindOf(number int) Kind {
	switch number % 4 {
	case 2:
		return OnLink
	case 3:
		return OnBridge
	}
	return OnWeir
}

func named(r *rand.Rand) []policy.NamedPort {
	var ports []policy.NamedPort
	for _, name := range portNames[:2] {
		for _, proto := range []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP} {
			if r.IntN(3) == 0 {
				ports = append(ports, policy.NamedPort{Name: name, Proto: proto, Number: uint16(pick(r, numbers))})
			}
		}
	}
	return ports
}

// Change returns the state after one to six random changes of labels, policies, pods and Nodes.
func Change(r *rand.Rand, old policy.State) policy.State {
	s := old
	s.Namespaces, s.Pods = slices.Clone(old.Namespaces), slices.Clone(old.Pods)
	s.Policies, s.Endpoints = slices.Clone(old.Policies), slices.Clone(old.Endpoints)
	families := stack(r)
	for range 1 + r.IntN(6) {
		switch r.IntN(7) {
		case 0:
			if len(s.Namespaces) > 0 {
				s.Namespaces[r.IntN(len(s.Namespaces))].Labels = labels(r)
			}
		case 1:
			changePod(r, &s, func(p *policy.Pod) { p.Labels = labels(r) })
		case 2:
			s.Policies = append(s.Policies, Policy(r, 10+r.IntN(10)))
		case 3:
			if len(s.Policies) > 0 {
				i := r.IntN(len(s.Policies))
				s.Policies = slices.Delete(s.Policies, i, i+1)
			}
		case 4:
			if len(s.Policies) > 0 {
				s.Policies[r.IntN(len(s.Policies))] = Policy(r, r.IntN(6))
			}
		case 5:
			addPod(r, &s, 10+r.IntN(10), families)
		case 6:
			if s.Nodes != nil {
				s.Nodes = nodes(r, families)
			}
		}
	}
	// The changes may have added an object that exists already. Only the first such object stays. Pods are compared by
	// name alone, because an endpoint's ID has only the pod's name.
	seen := map[string]bool{}
	first := func(key string) bool {
		defer func() { seen[key] = true }()
		return seen[key]
	}
	s.Policies = slices.DeleteFunc(s.Policies, func(np *networkingv1.NetworkPolicy) bool {
		return first(np.Namespace + "/" + np.Name)
	})
	s.Pods = slices.DeleteFunc(s.Pods, func(p policy.Pod) bool { return first("pod " + p.Name) })
	s.Endpoints = slices.DeleteFunc(s.Endpoints,
		func(e policy.Endpoint) bool { return first("endpoint " + e.ID) })
	return s
}
