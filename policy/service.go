package policy

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Service has the parts of a v1 Service that an explanation needs. Services don't change the ruleset, because weir
// checks packets after their translation to a pod's address.
type Service struct {
	Namespace, Name string
	Kind            string
	ClusterIPs      []netip.Addr
	// Headless is true if the clusterIP is None. The Service's name in DNS then has the addresses of its endpoints, and
	// its ports aren't translated.
	Headless bool `json:",omitempty"`
	// Families has the Service's families. It is nil if they are unknown.
	Families []conf.Family `json:",omitempty"`
	// External has the externalIPs, and Balancer the addresses of the load balancer.
	External []netip.Addr
	Balancer []netip.Addr `json:",omitempty"`
	// Proxied has the addresses of a load balancer with ipMode: Proxy. kube-proxy doesn't translate them, so connections
	// from the cluster go to the load balancer.
	Proxied []netip.Addr `json:",omitempty"`
	// Ranges has the loadBalancerSourceRanges. If it is empty, every sender may use the addresses of Balancer.
	Ranges   []netip.Prefix `json:",omitempty"`
	Selector map[string]string
	Ports    []ServicePort
	// Local is true if the externalTrafficPolicy is Local. Packets from outside of the cluster then keep their source
	// address, and go only to endpoints on the node that receives them.
	Local bool
	// InternalLocal is true if the internalTrafficPolicy is Local. Packets to the ClusterIPs then go only to endpoints
	// on the sender's node.
	InternalLocal bool `json:",omitempty"`
	// Unready is true if pods that aren't ready are also endpoints (publishNotReadyAddresses).
	Unready bool `json:",omitempty"`
	// Endpoints is nil if the source has no EndpointSlices.
	Endpoints []ServiceEndpoint
}

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// IsExternal reports whether hosts outside of the cluster can reach the Service, by a nodePort, an externalIP or a load
// balancer.
func (s Service) IsExternal() bool {
	return s.Kind == "NodePort" || s.Kind == "LoadBalancer" || len(s.External) > 0
}

// Has reports whether the address is one of the Service's addresses that kube-proxy translates to pods' addresses.
func (s Service) Has(a netip.Addr) bool {
	return slices.Contains(s.ClusterIPs, a) || slices.Contains(s.External, a) || slices.Contains(s.Balancer, a)
}

// ServicePort is a port of a Service. Target is the number or the name of the pods' port. NodePort is 0 if there is
// none.
type ServicePort struct {
	Name     string
	Proto    ruleset.Protocol
	Port     uint16
	Target   intstr.IntOrString
	NodePort uint16
}

// ServiceEndpoint is an address behind a Service, from an EndpointSlice.
type ServiceEndpoint struct {
	Address netip.Addr
	// Node is the node of the address, or empty if it is unknown.
	Node string `json:",omitempty"`
	// Ready is true if packets to the Service can go to the address.
	Ready bool
	// Ending is true if the address isn't ready because its pod is ending, but the pod still serves. kube-proxy uses such
	// addresses only if no ready address can be used.
	Ending bool `json:",omitempty"`
	// Ports has the Service's ports by name, with their numbers at this address.
	Ports []NamedPort
}
