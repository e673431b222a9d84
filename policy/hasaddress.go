package policy

import "net/netip"

// HasAddress reports whether a pod has the address, by its endpoint on this node or by its status. Pods with
// hostNetwork, and addresses that the pod's Node can't assign, don't count.
func (e *Engine) HasAddress(a netip.Addr) bool { return len(e.addresses.all(a)) > 0 }
