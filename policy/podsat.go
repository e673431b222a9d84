package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// PodsAt returns the pods for which policy uses the address, as namespace/name. Several names are in order, with
// commas. It returns "" if no pod has the address.
func (e *Engine) PodsAt(a netip.Addr) string {
	var names []string
	for _, p := range e.addresses.users(a) {
		names = append(names, comment(p.Pod))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
