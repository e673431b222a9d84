package policy

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Service has the parts of a v1 Service that an explanation needs. No ruleset depends on Services: weir checks
// packets after the translation to a pod's address.
type Service struct {
	Namespace, Name string
	Kind            string
	ClusterIPs      []netip.Addr
	// Headless is true if the clusterIP is None. Names of the Service then have its endpoints' addresses, and nothing
	// translates its ports.
	Headless bool `json:",omitempty"`
	// Families are the Service's families. They are nil if they are unknown.
	Families []conf.Family `json:",omitempty"`
	// External are the externalIPs, and Balancer are the addresses of the load balancer.
	External []netip.Addr
	Balancer []netip.Addr `json:",omitempty"`
	// Ranges are the loadBalancerSourceRanges. If there are none, every sender may use the Balancer's addresses.
	Ranges   []netip.Prefix `json:",omitempty"`
	Selector map[string]string
	Ports    []ServicePort
	// Local is true if the externalTrafficPolicy is Local. Packets from outside then keep their senders'
	// addresses, and go only to endpoints on the node that receives them.
	Local bool
	// InternalLocal is true if the internalTrafficPolicy is Local. Packets to the ClusterIPs then go only to
	// endpoints on the sender's node.
	InternalLocal bool `json:",omitempty"`
	// Unready is true if pods that aren't ready are also endpoints (publishNotReadyAddresses).
	Unready bool `json:",omitempty"`
	// Endpoints are nil if the source has no EndpointSlices.
	Endpoints []ServiceEndpoint
}

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// IsExternal reports whether hosts outside of the cluster can reach the Service.
func (s Service) IsExternal() bool {
	return s.Kind == "NodePort" || s.Kind == "LoadBalancer" || len(s.External) > 0
}

// Has reports whether the address is one of the Service's own.
func (s Service) Has(a netip.Addr) bool {
	return slices.Contains(s.ClusterIPs, a) || slices.Contains(s.External, a) || slices.Contains(s.Balancer, a)
}

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
	// Node is empty if the endpoint states none.
	Node string `json:",omitempty"`
	// Ready is true if packets to the Service can go to the address.
	Ready bool
	// Ports are the Service's ports by their names, each with its number at this address.
	Ports []NamedPort
}
