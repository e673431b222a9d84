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
	// Kind is the type of the Service: ClusterIP, NodePort, LoadBalancer or ExternalName.
	Kind string
	// ClusterIPs are empty for a headless Service.
	ClusterIPs []netip.Addr
	// External are the Service's externalIPs and the addresses of its load balancer.
	External []netip.Addr
	// Selector is empty if no selector chooses the Service's endpoints.
	Selector map[string]string
	Ports    []ServicePort
	// Local is true if the externalTrafficPolicy is Local. Packets from outside then keep their senders' addresses.
	Local bool
	// Endpoints are those of the Service's EndpointSlices. They are nil if the source has no EndpointSlices.
	Endpoints []ServiceEndpoint
}

// String returns the Service as "NAMESPACE/NAME".
func (s Service) String() string { return s.Namespace + "/" + s.Name }

// ServicePort is a port of a Service, and the port of the pods that it leads to.
type ServicePort struct {
	Name  string
	Proto ruleset.Protocol
	Port  uint16
	// Target is the number or the name of the port of the Service's pods.
	Target intstr.IntOrString
	// NodePort is the port on each node; 0 if the port has none.
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
