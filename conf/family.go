package conf

import "net/netip"

// Family is an IP family. The kernel has sets, tables and chains for each.
type Family uint8

// The two IP families.
const (
	IPv4 Family = iota
	IPv6
)

// Families has both families, in the order in which weir handles them.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf returns the address's family.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns the family's name.
func (f Family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// Set returns the name of the family's set, for the name of IPv4's set. There is one set for each family: weir-pods and
// weir-pods6.
func (f Family) Set(name string) string {
	if f == IPv6 {
		return name + "6"
	}
	return name
}
