package policy

import "net/netip"

// HasAddress reports whether a pod of the engine has the address or states it.
func (e *Engine) HasAddress(a netip.Addr) bool { return len(e.addresses.all(a)) > 0 }
