package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// PodsAt returns the pods for which the address counts, as NAMESPACE/NAME with commas between them. It returns "" if
// there are none.
func (e *Engine) PodsAt(a netip.Addr) string {
	var names []string
	for _, p := range e.addresses.users(a) {
		names = append(names, comment(p.Pod))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
