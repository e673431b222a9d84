package packettest

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

func attached(t *testing.T, ports []uint16, pods ...policy.Pod) (*Node, policy.State) {
	t.Helper()
	subnet := policytest.Of[conf.IPv4].Subnet
	n := NewNode(t, []endpoint.Address{{Subnet: subnet, Gateway: subnet.Addr().Next()}}, ports...)
	s := policy.State{Objects: policy.Objects{Pods: pods}}
	for _, p := range pods {
		name := p.Namespace + "." + p.Name
		n.AddPod(name, p.Addresses[0])
		s.Endpoints = append(s.Endpoints, policy.Endpoint{
			ID: name + ":eth0", Enforcement: conf.Strict, Pod: policy.PodRef{Namespace: p.Namespace, Name: p.Name},
			Addresses: []policy.Address{{Addr: p.Addresses[0], Subnet: subnet}},
		})
	}
	return n, s
}

func pod(namespace, name, addr string, ports ...policy.NamedPort) policy.Pod {
	return policy.Pod{
		Namespace: namespace,
		Name:      name,
		Labels:    map[string]string{"app": name},
		Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		Ports:     ports,
	}
}

func networkPolicy(t *testing.T, text string) *networkingv1.NetworkPolicy {
	t.Helper()
	var np networkingv1.NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(text), &np); err != nil {
		t.Fatal(err)
	}
	return &np
}

func to(dst, src netip.Addr, ports ...uint16) (all []verdict.Packet) {
	for _, port := range ports {
		all = append(all, verdict.Packet{Src: src, Dst: dst, Proto: ruleset.TCP, Port: port})
	}
	return all
}

// want sends all packets. Packets in the slice pass must arrive, and packets in the slice closed must not.
func (n *Node) want(what string, pass, closed []verdict.Packet) {
	n.Helper()
	packets := append(append([]verdict.Packet{}, pass...), closed...)
	expect := make([]bool, len(packets))
	for i := range pass {
		expect[i] = true
	}
	for i, got := range n.Send(packets, expect) {
		if got != expect[i] {
			n.Errorf("%s: %+v arrived: %v", what, packets[i], got)
		}
	}
}
