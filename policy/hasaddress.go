package policy

import "net/netip"

// HasAddress reports whether a pod has the address, by its endpoint or by its status.
func (e *Engine) HasAddress(a netip.Addr) bool { return len(e.addresses.all(a)) > 0 }
