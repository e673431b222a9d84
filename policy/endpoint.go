package policy

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
)

// Endpoint is one attachment of a pod of this node, as policy sees it: the pod's identity and the attachment's
// addresses.
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

// PodRef identifies a pod. UID is empty if the runtime hasn't passed it to ADD.
type PodRef struct{ Namespace, Name, UID string }

func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// Address is an address of an endpoint, with the subnet from which it was assigned.
type Address struct {
	Addr   netip.Addr
	Subnet netip.Prefix
}
