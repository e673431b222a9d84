package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
)

// Endpoint is one attachment of a pod of this node, as policy sees it: the pod's identity and the addresses.
type Endpoint struct {
	ID               string
	Pod              PodRef
	Addresses        []Address
	Enforcement      conf.Enforcement
	Chained          bool
	HostIf, BridgeIf string
}

func (e Endpoint) equal(o Endpoint) bool {
	return e.ID == o.ID && e.Pod == o.Pod && slices.Equal(e.Addresses, o.Addresses) && e.Enforcement == o.Enforcement &&
		e.Chained == o.Chained && e.HostIf == o.HostIf && e.BridgeIf == o.BridgeIf
}

// PodRef names a pod. UID is empty if the runtime gave none.
type PodRef struct{ Namespace, Name, UID string }

func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// Address is an address of an endpoint, with the subnet that it was assigned from.
type Address struct {
	Addr   netip.Addr
	Subnet netip.Prefix
}
