package objects

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Service converts a Service, without its endpoints. It leaves out addresses and ports that can't be read.
func Service(o *corev1.Service) policy.Service {
	s := policy.Service{
		Namespace: o.Namespace, Name: o.Name, Kind: string(o.Spec.Type), Selector: o.Spec.Selector,
		Local:    o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Headless: o.Spec.ClusterIP == corev1.ClusterIPNone, Unready: o.Spec.PublishNotReadyAddresses,
	}
	if p := o.Spec.InternalTrafficPolicy; p != nil {
		s.InternalLocal = *p == corev1.ServiceInternalTrafficPolicyLocal
	}
	if s.Kind == "" {
		s.Kind = string(corev1.ServiceTypeClusterIP)
	}
	clusterIPs := o.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{o.Spec.ClusterIP}
	}
	s.Headless = s.Headless || slices.Contains(clusterIPs, corev1.ClusterIPNone)
	s.ClusterIPs, s.External = addresses(clusterIPs), addresses(o.Spec.ExternalIPs)
	for _, i := range o.Status.LoadBalancer.Ingress {
		to := &s.Balancer
		if i.IPMode != nil && *i.IPMode == corev1.LoadBalancerIPModeProxy {
			to = &s.Proxied
		}
		*to = append(*to, addresses([]string{i.IP})...)
	}
	for _, text := range o.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			s.Ranges = append(s.Ranges, p.Masked())
		}
	}
	s.Families = families(o.Spec.IPFamilies, s.ClusterIPs)
	for _, p := range o.Spec.Ports {
		if p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 {
			continue
		}
		port := policy.ServicePort{
			Name: p.Name, Proto: protocol(p.Protocol), Port: uint16(p.Port), Target: p.TargetPort, NodePort: uint16(p.NodePort),
		}
		// If a Service has no targetPort, the API uses the Service's port.
		if port.Target == intstr.FromInt32(0) || port.Target == intstr.FromString("") {
			port.Target = intstr.FromInt32(p.Port)
		}
		s.Ports = append(s.Ports, port)
	}
	return s
}

// families returns the families that the Service states. If it states none, families returns the families of its
// clusterIPs.
func families(stated []corev1.IPFamily, clusterIPs []netip.Addr) (all []conf.Family) {
	for _, f := range stated {
		switch f {
		case corev1.IPv4Protocol:
			all = append(all, conf.IPv4)
		case corev1.IPv6Protocol:
			all = append(all, conf.IPv6)
		}
	}
	if len(all) > 0 {
		return all
	}
	for _, a := range clusterIPs {
		all = append(all, conf.FamilyOf(a))
	}
	return all
}

// AddSlice adds the endpoints of an EndpointSlice to the Service. As the API says, an endpoint without the condition
// ready counts as ready, and an endpoint without the condition serving counts as serving.
func AddSlice(s *policy.Service, o *discoveryv1.EndpointSlice) {
	if s.Endpoints == nil {
		s.Endpoints = []policy.ServiceEndpoint{}
	}
	var ports []policy.NamedPort
	for _, p := range o.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		port := policy.NamedPort{Proto: ruleset.TCP, Number: uint16(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.Protocol != nil {
			port.Proto = protocol(*p.Protocol)
		}
		ports = append(ports, port)
	}
	for _, e := range o.Endpoints {
		ready, serving := is(e.Conditions.Ready, true), is(e.Conditions.Serving, true)
		ending := !ready && serving && is(e.Conditions.Terminating, false)
		node := ""
		if e.NodeName != nil {
			node = *e.NodeName
		}
		for _, a := range addresses(e.Addresses) {
			s.Endpoints = append(s.Endpoints, policy.ServiceEndpoint{
				Address: a, Node: node, Ready: ready, Ending: ending, Ports: ports,
			})
		}
	}
}

func is(condition *bool, otherwise bool) bool {
	if condition == nil {
		return otherwise
	}
	return *condition
}

func addresses(texts []string) (all []netip.Addr) {
	for _, text := range texts {
		if a, ok := address(text); ok {
			all = append(all, a)
		}
	}
	return all
}

// protocol converts a protocol's name. For TCP, UDP and SCTP it allocates no memory, because IsPod calls it for each
// pod of the cluster.
func protocol(p corev1.Protocol) ruleset.Protocol {
	switch p {
	case corev1.ProtocolTCP, "": // the API's default is TCP
		return ruleset.TCP
	case corev1.ProtocolUDP:
		return ruleset.UDP
	case corev1.ProtocolSCTP:
		return ruleset.SCTP
	}
	return ruleset.Protocol(strings.ToLower(string(p)))
}
