package conf

import "net/netip"

// Family is an IP family. The kernel has separate sets, tables and chains for each family.
type Family uint8

const (
	IPv4 Family = iota
	IPv6
)

// Families has both families, in the order in which weir handles them.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf returns the address's family. An IPv4 address in IPv6 form (::ffff:10.88.0.2) counts as IPv6, so callers
// must unmap such an address first.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// Set returns the name of a set of this family. name is the name of the set for IPv4. For IPv6, weir-pods becomes
// weir-pods6.
func (f Family) Set(name string) string {
	if f == IPv6 {
		return name + "6"
	}
	return name
}
