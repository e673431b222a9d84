package policy

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy/ruleset"
)

// Service has the parts of a v1 Service that an explanation needs. No ruleset depends on Services: weir checks
// packets after the translation to a pod's address.
type Service struct {
	Namespace, Name string
	Kind            string
	ClusterIPs      []netip.Addr
	// External are the externalIPs and the addresses of the load balancer.
	External []netip.Addr
	Selector map[string]string
	Ports    []ServicePort
	// Local is true if the externalTrafficPolicy is Local. Packets from outside then keep their senders'
	// addresses.
	Local bool
	// Endpoints are nil if the source has no EndpointSlices.
	Endpoints []ServiceEndpoint
}

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// ServicePort is a port of a Service. Target is the number or the name of the pods' port. NodePort is 0 if
// there is none.
type ServicePort struct {
	Name     string
	Proto    ruleset.Protocol
	Port     uint16
	Target   intstr.IntOrString
	NodePort uint16
}

// ServiceEndpoint is an address behind a Service.
type ServiceEndpoint struct {
	Address netip.Addr
	// Ready is true if packets to the Service can go to the address.
	Ready bool
	// Ports are the Service's ports by their names, each with its number at this address.
	Ports []NamedPort
}
