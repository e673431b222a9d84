package policy

import (
	"net/netip"

	"github.com/weir-net/weir/conf"
)

// Endpoint is a pod of this node as policy sees it, by one attachment: identity and addresses.
type Endpoint struct {
	// ID names the attachment, and is unique on the node.
	ID  string
	Pod PodRef
	// Addresses of the pod's interface.
	Addresses   []Address
	Enforcement conf.Enforcement
	// Chained says that another plugin made the interface.
	Chained bool
	// HostIf is the interface's link on the node, and BridgeIf the bridge of another plugin that the link is a port of;
	// empty where that isn't known, or where there is none.
	HostIf, BridgeIf string
}

// PodRef names a pod. UID is empty where the runtime gave none.
type PodRef struct{ Namespace, Name, UID string }

// String is namespace/name.
func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// Address of an endpoint, and the subnet that it was assigned from.
type Address struct {
	Addr   netip.Addr
	Subnet netip.Prefix
}
