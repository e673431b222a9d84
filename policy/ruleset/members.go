package ruleset

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
)

type members struct {
	groups     []memberGroup
	entries    int // the number of entries of all groups, plus the number of groups
	found      byAddress[*signature]
	signatures map[signatureOf]*signature
	searches   int // how many groups have been searched
	tables     [len(conf.Families)]*memberTable
	list       []int32 // buffer for the groups of a signature
	key        []byte  // buffer that the method intern reuses
}

type memberGroup struct {
	set     *Set
	network netip.Prefix
}

// A signature says which groups contain an address. A group is a set, or the network of a rule. The signature has some
// of the groups in its own list, and the others in the signature above, which belongs to a network around the address.
// Equal signatures are the same pointer.
type signature struct {
	recent [8]struct {
		chain *indexedChain
		end   end
		row   *row
	}
	groups []int32
	above  *signature
}

type signatureOf struct {
	groups string
	above  *signature
}

// byAddress is a map by address. For IPv4 it is twice as fast as Go's map with netip.Addr as keys.
type byAddress[V any] struct {
	four map[uint32]V
	six  map[[16]byte]V
}

func (m *byAddress[V]) get(a netip.Addr) (v V, ok bool) {
	if a.Is4() {
		four := a.As4()
		v, ok = m.four[binary.BigEndian.Uint32(four[:])]
		return v, ok
	}
	v, ok = m.six[a.As16()]
	return v, ok
}

func (m *byAddress[V]) set(a netip.Addr, v V) {
	if m.four == nil {
		m.four, m.six = map[uint32]V{}, map[[16]byte]V{}
	}
	if a.Is4() {
		four := a.As4()
		m.four[binary.BigEndian.Uint32(four[:])] = v
	} else {
		m.six[a.As16()] = v
	}
}

func (s *signature) in(group int32) bool {
	for ; s != nil; s = s.above {
		if len(s.groups) <= few {
			if slices.Contains(s.groups, group) {
				return true
			}
		} else if _, found := slices.BinarySearch(s.groups, group); found {
			return true
		}
	}
	return false
}

func (m *members) add(network netip.Prefix, set *Set) int32 {
	m.groups = append(m.groups, memberGroup{set, network})
	if m.entries++; set != nil {
		m.entries += set.Entries.Len()
	}
	return int32(len(m.groups) - 1)
}

// searchTime is the time for searching one group. The unit is the time for adding one entry to a table.
const searchTime = 4

// signature returns the signature of the address: the groups (sets and networks) that contain the address. At first
// the method searches each group. When the searches have taken as long as making a memberTable takes, the method makes
// the table.
func (m *members) signature(a netip.Addr) *signature {
	if t := m.tables[conf.FamilyOf(a)]; t != nil && len(t.sizes) <= few {
		return t.signature(m, a, a.BitLen())
	}
	if s, ok := m.found.get(a); ok {
		return s
	}
	var s *signature
	if searchTime*m.searches > m.entries {
		s = m.table(conf.FamilyOf(a)).signature(m, a, a.BitLen())
	} else {
		m.searches += len(m.groups)
		m.list = m.list[:0]
		for n, g := range m.groups {
			if g.contains(a) {
				m.list = append(m.list, int32(n))
			}
		}
		s = m.intern(nil)
	}
	m.found.set(a, s)
	return s
}

func (m *members) intern(above *signature) *signature {
	if len(m.list) == 0 {
		return above
	}
	m.key = m.key[:0]
	for _, n := range m.list {
		m.key = binary.NativeEndian.AppendUint32(m.key, uint32(n))
	}
	s, ok := m.signatures[signatureOf{string(m.key), above}]
	if !ok {
		s = &signature{groups: slices.Clone(m.list), above: above}
		if m.signatures == nil {
			m.signatures = map[signatureOf]*signature{}
		}
		m.signatures[signatureOf{string(m.key), above}] = s
	}
	return s
}

func (g memberGroup) contains(a netip.Addr) bool {
	if g.set == nil {
		return g.network.Contains(a)
	}
	_, ok := g.set.covering(a, a.BitLen())
	return ok
}

func (m *members) table(f conf.Family) *memberTable {
	if m.tables[f] != nil {
		return m.tables[f]
	}
	t := newMemberTable(f)
	m.tables[f] = t
	for n, g := range m.groups {
		if g.set == nil {
			t.add(g.network, int32(n))
			continue
		}
		for e := range g.set.Entries.All() {
			t.add(e.Prefix, int32(n))
		}
	}
	return t
}

// memberTable finds an address's signature, which says in which groups the address is (see signature). It has the
// networks of one family, in a map for each prefix length, because only a few lengths are used.
type memberTable struct {
	family   conf.Family
	bySize   [129]*byAddress[int32] // the index in networks, by prefix length and first address
	sizes    []int                  // prefix lengths, the longest first
	networks []memberNetwork
	links    []memberLink
}

type memberNetwork struct {
	link      int32      // index of the network's first group in memberTable.links; 0 if there is none
	resolved  bool       // true if signature is set
	signature *signature // signature of the addresses that are in no smaller network
}

type memberLink struct{ group, next int32 }

func newMemberTable(f conf.Family) *memberTable {
	return &memberTable{family: f, links: make([]memberLink, 1)}
}

func (t *memberTable) add(network netip.Prefix, group int32) {
	if !network.IsValid() || conf.FamilyOf(network.Addr()) != t.family {
		return
	}
	size, first := network.Bits(), network.Masked().Addr()
	if t.bySize[size] == nil {
		t.bySize[size] = &byAddress[int32]{}
		i, _ := slices.BinarySearchFunc(t.sizes, size, func(a, b int) int { return b - a })
		t.sizes = slices.Insert(t.sizes, i, size)
	}
	i, ok := t.bySize[size].get(first)
	if !ok {
		i = int32(len(t.networks))
		t.networks = append(t.networks, memberNetwork{})
		t.bySize[size].set(first, i)
	}
	n := &t.networks[i]
	if n.link != 0 && t.links[n.link].group == group { // the group already has the network, with another link or port
		return
	}
	t.links = append(t.links, memberLink{group, n.link})
	n.link = int32(len(t.links) - 1)
}

func (t *memberTable) signature(m *members, a netip.Addr, most int) *signature {
	for _, size := range t.sizes {
		if size > most {
			continue
		}
		i, ok := t.bySize[size].get(first(a, size))
		if !ok {
			continue
		}
		n := &t.networks[i]
		if !n.resolved {
			above := t.signature(m, a, size-1)
			m.list = m.list[:0]
			for l := n.link; l != 0; l = t.links[l].next {
				m.list = append(m.list, t.links[l].group)
			}
			slices.Sort(m.list)
			n.resolved, n.signature = true, m.intern(above)
		}
		return n.signature
	}
	return nil
}

func first(a netip.Addr, size int) netip.Addr {
	if size == a.BitLen() {
		return a
	}
	p, _ := a.Prefix(size)
	return p.Addr()
}

// covering returns the smallest network of the set that contains the address. It ignores networks with a prefix longer
// than size.
func (s *Set) covering(a netip.Addr, size int) (netip.Prefix, bool) {
	for size >= 0 {
		from := first(a, size)
		e, ok := s.Entries.last(func(e Element) bool {
			order := e.Prefix.Addr().Compare(from)
			return order < 0 || (order == 0 && e.Prefix.Bits() <= size)
		})
		p := e.Prefix
		switch {
		case p.Contains(a):
			return p, true
		case !ok, p.Addr().BitLen() != a.BitLen():
			return netip.Prefix{}, false
		}
		size = min(size-1, common(p.Addr(), a))
	}
	return netip.Prefix{}, false
}

func common(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	n := bits.LeadingZeros64(binary.BigEndian.Uint64(x[:8]) ^ binary.BigEndian.Uint64(y[:8]))
	if n == 64 {
		n += bits.LeadingZeros64(binary.BigEndian.Uint64(x[8:]) ^ binary.BigEndian.Uint64(y[8:]))
	}
	return n - (128 - a.BitLen())
}

func (s *Set) hasLink(a netip.Addr, link string) bool {
	for size := a.BitLen(); ; {
		p, ok := s.covering(a, size)
		if !ok || s.has(Element{Prefix: p, Link: link}) {
			return ok
		}
		size = p.Bits() - 1
	}
}

func (s *Set) has(e Element) bool {
	_, ok := s.Entries.Get(e)
	return ok
}
