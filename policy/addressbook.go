package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type addressBook struct {
	one  map[netip.Addr]*pod   // addresses of exactly one pod
	more map[netip.Addr][]*pod // addresses of several pods
	// taken has, for each address, the number of this node's endpoints with the address. If there is such an endpoint,
	// policies use the address only for pods with an endpoint on this node. Any other pod with the address is an old pod
	// that is being deleted.
	taken map[netip.Addr]int
}

func newAddressBook() addressBook {
	return addressBook{one: map[netip.Addr]*pod{}, more: map[netip.Addr][]*pod{}, taken: map[netip.Addr]int{}}
}

func (b *addressBook) add(a netip.Addr, p *pod) {
	switch first := b.one[a]; {
	case b.more[a] != nil:
		if !slices.Contains(b.more[a], p) {
			b.more[a] = append(b.more[a], p)
		}
	case first == nil:
		b.one[a] = p
	case first != p:
		b.more[a] = []*pod{first, p}
		delete(b.one, a)
	}
}

func (b *addressBook) remove(a netip.Addr, p *pod) {
	if b.one[a] == p {
		delete(b.one, a)
	}
	several := b.more[a]
	if several == nil {
		return
	}
	if several = slices.DeleteFunc(several, func(o *pod) bool { return o == p }); len(several) == 1 {
		b.one[a] = several[0]
		delete(b.more, a)
		return
	}
	b.more[a] = several
}

func (b *addressBook) all(a netip.Addr) []*pod {
	if several := b.more[a]; several != nil {
		return several
	}
	if p := b.one[a]; p != nil {
		return []*pod{p}
	}
	return nil
}

func (b *addressBook) uses(p *pod, a netip.Addr) bool { return p.local || b.taken[a] == 0 }

func (b *addressBook) users(a netip.Addr) []*pod {
	all := b.all(a)
	if b.taken[a] == 0 {
		return all
	}
	var local []*pod
	for _, p := range all {
		if p.local {
			local = append(local, p)
		}
	}
	return local
}

func (b *addressBook) names(a netip.Addr) (names []string) {
	if b.more[a] == nil {
		return nil
	}
	for _, p := range b.users(a) {
		names = append(names, comment(p.Pod))
	}
	return names
}

type standing struct {
	selectors []*live // ordered by ID
	ports     []portAt
	of        *Pod // the pod whose name is the comment of the address's entries in sets
}

type portAt struct {
	*live
	port NamedPort
}

func (e *Engine) at(a netip.Addr) (s standing) {
	users := e.addresses.users(a)
	if len(users) == 0 {
		return s
	}
	s.of, s.selectors = users[0].Pod, users[0].crowd.matches
	for _, p := range users[1:] {
		if comment(p.Pod) < comment(s.of) {
			s.of = p.Pod
		}
		var both []*live
		for _, l := range s.selectors {
			if _, in := slices.BinarySearchFunc(p.crowd.matches, l, byID); in {
				both = append(both, l)
			}
		}
		s.selectors = both
	}
	for _, port := range users[0].Ports {
		sets := e.selectors.ports(port, users[0].local)
		if len(sets) == 0 || slices.ContainsFunc(users, func(p *pod) bool { return !slices.Contains(p.Ports, port) }) {
			continue
		}
		for _, l := range sets {
			s.ports = append(s.ports, portAt{l, port})
		}
	}
	return s
}

func comment(p *Pod) string { return p.Namespace + "/" + p.Name }

// moving has the changes that aren't in the sets yet. settle writes these changes into the sets at the end of a
// delta (changes of a source's objects), and in a large delta also after each 4,096 addresses. So if a delta moves
// an address from one pod to another, the sets change only once.
type moving struct {
	addresses map[netip.Addr]standing // which sets had the address before
	crowds    map[*crowd]bool         // crowds (pods with equal labels) that have lost their last pod
	counts    map[*live]bool          // selectors whose number of addresses has changed
	last      move
	sets      map[*live]bool // selectors whose sets have changed
}

func newMoving() moving {
	return moving{
		addresses: map[netip.Addr]standing{}, crowds: map[*crowd]bool{}, counts: map[*live]bool{}, sets: map[*live]bool{},
	}
}

func (e *Engine) touch(a netip.Addr) {
	if _, ok := e.moving.addresses[a]; !ok {
		e.moving.addresses[a] = e.at(a)
	}
}

func (e *Engine) settleSome() {
	const many = 1 << 12
	if len(e.moving.addresses) >= many {
		e.settle()
	}
}

func (e *Engine) settle() {
	for a, was := range e.moving.addresses {
		now := e.at(a)
		e.moveSelectors(a, was, now)
		e.movePorts(a, was, now)
		e.reports.set(reportOf{shared: a}, sharedProblems(a, e.addresses.names(a)))
	}
	empty(&e.moving.addresses)
	for c := range e.moving.crowds {
		if len(c.pods) == 0 {
			e.dropCrowd(c)
		}
	}
	empty(&e.moving.crowds)
}

// empty removes all elements of a map. It replaces a large map by a new one: clear would keep the map's memory, and
// iterating over the map would stay slow.
func empty[K comparable, V any](m *map[K]V) {
	if len(*m) > 64 {
		*m = map[K]V{}
		return
	}
	clear(*m)
}

func (e *Engine) moveSelectors(a netip.Addr, was, now standing) {
	renamed := was.of != now.of && was.of != nil && now.of != nil && comment(was.of) != comment(now.of)
	if !renamed && slices.Equal(was.selectors, now.selectors) {
		return
	}
	for _, l := range was.selectors {
		if _, in := slices.BinarySearchFunc(now.selectors, l, byID); !in {
			e.delete(l, a, ruleset.Element{Prefix: hostPrefix(a)})
		}
	}
	for _, l := range now.selectors {
		if _, in := slices.BinarySearchFunc(was.selectors, l, byID); !in || renamed {
			e.put(l, a, entry(hostPrefix(a), comment(now.of)))
		}
	}
}

func (e *Engine) movePorts(a netip.Addr, was, now standing) {
	for _, p := range was.ports {
		if !slices.Contains(now.ports, p) {
			e.delete(p.live, a, namedEntry(a, p.port, "").Element)
		}
	}
	for _, p := range now.ports {
		e.put(p.live, a, namedEntry(a, p.port, comment(now.of)))
	}
}

type move struct {
	was, now ruleset.Entries
	entry    ruleset.Entry
	with     bool // true if the entry was put, false if it was deleted
}

func (e *Engine) put(l *live, a netip.Addr, entry ruleset.Entry) { e.change(l, a, entry, true) }

func (e *Engine) delete(l *live, a netip.Addr, element ruleset.Element) {
	e.change(l, a, ruleset.Entry{Element: element}, false)
}

func (e *Engine) change(l *live, a netip.Addr, entry ruleset.Entry, with bool) {
	set, last := &l.sets[conf.FamilyOf(a)], &e.moving.last
	if !set.filled {
		return
	}
	if last.with != with || last.entry != entry || !last.was.Same(set.entries) {
		*last = move{was: set.entries, entry: entry, with: with}
		if with {
			last.now = last.was.With(entry)
		} else {
			last.now = last.was.Without(entry.Element)
		}
	}
	if set.entries = last.now; !last.now.Same(last.was) {
		e.moving.sets[l] = true
	}
}

func byID(a, b *live) int { return cmp.Compare(a.id, b.id) }
