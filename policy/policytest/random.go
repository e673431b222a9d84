// Package policytest makes random clusters for tests: small enough to be read when one fails, and drawn from few names,
// labels and ports, so that policies, pods and packets meet often.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Addresses are those of one family.
type Addresses struct {
	// Outside is an address beyond the node, Node its own.
	Outside, Node netip.Addr
	// Subnet is where the pods of this node have their addresses; Elsewhere, those of other nodes.
	Subnet, Elsewhere netip.Prefix
	both, third       netip.Prefix
}

// Of are the addresses of each family.
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

// local says whether the address is one of this node's pods'.
func local(a netip.Addr) bool { return Of[conf.FamilyOf(a)].Subnet.Contains(a) }

// Some names are others written one behind the other: what joins names carelessly takes two things for one.
var (
	namespaces = []string{"x", "xa", "z"}
	keys       = []string{"a", "b", "ab"}
	values     = []string{"1", "2", ""}
	numbers    = []int32{80, 81, 83, 443}
	portNames  = []string{"http", "alt", "gone"} // no pod has the last one
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

// stack are the families of a cluster: either, or both.
func stack(r *rand.Rand) []conf.Family {
	return pick(r, [][]conf.Family{{conf.IPv4}, {conf.IPv6}, {conf.IPv4, conf.IPv6}, {conf.IPv6, conf.IPv4}})
}

// State is a cluster of three namespaces, up to eight pods and up to five policies. Most pods are on this node, and
// most have the same families.
func State(r *rand.Rand) policy.State {
	var s policy.State
	families := stack(r)
	for i, name := range namespaces {
		if i == 2 && r.IntN(10) == 0 {
			break // pods may be told of before their namespace is
		}
		s.Namespaces = append(s.Namespaces, policy.Namespace{Name: name, Labels: labels(r), Unknown: unknown(r)})
	}
	if r.IntN(5) > 0 { // else there are none, as where manifests have none
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

// Nodes have the pods of Subnet and of Elsewhere. Now and then one's podCIDRs aren't known yet, or overlap the other's.
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

// at is the address with that number in the network.
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
	var attached []endpoint.Address
	for _, f := range families {
		network := Of[f].Subnet
		if elsewhere {
			network = Of[f].Elsewhere
		}
		p.Addresses = append(p.Addresses, at(network, 2+i))
		attached = append(attached, endpoint.Address{Addr: at(network, 2+i), Subnet: network, Gateway: at(network, 1)})
	}
	p.Ports = named(r)
	// The status may lag behind: no address yet, one family's only, one that another pod has by now, or that of the node.
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
	e := endpoint.Endpoint{
		ContainerID: p.Name,
		IfName:      "eth0",
		Enforcement: conf.Strict,
		Pod:         endpoint.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
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
		for i, a := range e.Addresses { // as the plugin writes them down
			e.Addresses[i] = endpoint.Address{Addr: a.Addr, Subnet: netip.PrefixFrom(a.Addr, a.Addr.BitLen())}
		}
	}
	s.Endpoints = append(s.Endpoints, e)
}

// Kind of a pod's attachment.
type Kind int

// The kinds: on weir's own bridge, on a link of its own that another plugin made (ptp), and on another plugin's bridge.
const (
	OnWeir Kind = iota
	OnLink
	OnBridge
)

// Bridge is another plugin's. The pod of number n is behind the link "vethN" of the node.
const Bridge = "cni0"

// KindOf says how the pod of that number is attached.
func KindOf(number int) Kind {
	switch number % 4 {
	case 2:
		return OnLink
	case 3:
		return OnBridge
	}
	return OnWeir
}

// named are the ports of a pod: the same name may be another number in each pod and for each protocol.
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

// Change is the state after one to six things happened to it: labels changed, policies came, went or changed, pods
// came or went, Nodes changed.
func Change(r *rand.Rand, old policy.State) policy.State {
	s := old
	s.Namespaces, s.Pods = slices.Clone(old.Namespaces), slices.Clone(old.Pods)
	s.Policies, s.Endpoints = slices.Clone(old.Policies), slices.Clone(old.Endpoints)
	families := stack(r)
	for range 1 + r.IntN(6) {
		switch r.IntN(7) {
		case 0:
			s.Namespaces[r.IntN(len(s.Namespaces))].Labels = labels(r)
		case 1:
			s.Pods[r.IntN(len(s.Pods))].Labels = labels(r)
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
	// Two policies of one name, or pods of one address, are no state of a cluster.
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
		func(e endpoint.Endpoint) bool { return first("endpoint " + e.ContainerID) })
	return s
}

// Policy is a random NetworkPolicy.
func Policy(r *rand.Rand, i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, namespaces), Name: fmt.Sprint("np", i)},
	}
	np.Spec.PodSelector = *selector(r)
	np.Spec.PolicyTypes = pick(r, [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}})
	if r.IntN(100) == 0 {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingres"}
	}
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(r), Ports: ports(r)})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(r), Ports: ports(r)})
	}
	return np
}

func labels(r *rand.Rand) map[string]string {
	l := map[string]string{}
	for _, k := range keys {
		if r.IntN(2) == 0 {
			l[k] = pick(r, values)
		}
	}
	return l
}

// unknown are keys of labels of which now and then nobody knows anything.
func unknown(r *rand.Rand) []string {
	if r.IntN(12) > 0 {
		return nil
	}
	return []string{pick(r, keys)}
}

func selector(r *rand.Rand) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch r.IntN(10) {
	case 0, 1:
		return s // everybody
	case 2: // its text is a key and nothing else, which may be the end of another name
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: pick(r, keys), Operator: metav1.LabelSelectorOpExists}}
		return s
	}
	for range r.IntN(2) {
		s.MatchLabels = map[string]string{pick(r, keys): pick(r, values)}
	}
	for range r.IntN(3) {
		op := pick(r, []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"})
		req := metav1.LabelSelectorRequirement{Key: pick(r, keys), Operator: op}
		if op == "In" || op == "NotIn" {
			req.Values = values[:1+r.IntN(len(values))]
		}
		if r.IntN(100) == 0 {
			req.Operator = "Like" // what can't be understood must close
		}
		s.MatchExpressions = append(s.MatchExpressions, req)
	}
	return s
}

func peers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var list []networkingv1.NetworkPolicyPeer
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			p.IPBlock = block(r)
		case 1:
			p.PodSelector = selector(r)
		case 2:
			p.NamespaceSelector = selector(r)
		case 3:
			p.PodSelector, p.NamespaceSelector = selector(r), selector(r)
		}
		switch r.IntN(100) {
		case 0:
			p = networkingv1.NetworkPolicyPeer{}
		case 1:
			p.IPBlock = block(r)
		}
		list = append(list, p)
	}
	return list
}

// block has excepts that may overlap each other, or be all of it; now and then one lies outside, which is an error.
func block(r *rand.Rand) *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: pick(r, blocks)}
	outer := netip.MustParsePrefix(b.CIDR)
	for _, except := range blocks {
		inner := netip.MustParsePrefix(except)
		within := inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
		if (within && r.IntN(4) == 0) || r.IntN(300) == 0 {
			b.Except = append(b.Except, except)
		}
	}
	return b
}

func ports(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var list []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if r.IntN(3) > 0 {
			proto := pick(r, protocols)
			p.Protocol = &proto
		}
		switch r.IntN(5) {
		case 0:
			port := intstr.FromString(pick(r, portNames))
			p.Port = &port
		case 1, 2, 3:
			n := pick(r, numbers)
			port := intstr.FromInt32(n)
			p.Port = &port
			if r.IntN(3) == 0 {
				end := pick(r, []int32{n, n + 1, n + 2, 65535, n - 1})
				p.EndPort = &end
			}
		}
		if r.IntN(100) == 0 {
			icmp := corev1.Protocol("ICMP")
			p.Protocol = &icmp
		}
		list = append(list, p)
	}
	if r.IntN(40) == 0 { // more than one rule takes, or more than stand in rules
		for i := range pick(r, []int32{20, 80}) {
			port := intstr.FromInt32(446 + 2*i)
			list = append(list, networkingv1.NetworkPolicyPort{Port: &port})
		}
	}
	return list
}
