package policy

import "net/netip"

// HasAddress reports whether a pod has the address, in its endpoint on this node or in its status. Pods with
// hostNetwork don't count, and neither do addresses that the pod's Node can't assign.
func (e *Engine) HasAddress(a netip.Addr) bool { return len(e.addresses.all(a)) > 0 }
