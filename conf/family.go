package conf

import "net/netip"

// Family of IP. A packet is of one, and each has sets, tables and chains of its own in the kernel.
type Family uint8

// The families.
const (
	IPv4 Family = iota
	IPv6
)

// Families are both, in the order in which they are gone through.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf the address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String is the family's name.
func (f Family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// Set is the name of the family's own set, of which there is one for each family: weir-pods and weir-pods6.
func (f Family) Set(name string) string {
	if f == IPv6 {
		return name + "6"
	}
	return name
}
