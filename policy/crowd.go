package policy

import (
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type space struct {
	name     string
	object   Namespace // the zero value if the source doesn't have the namespace
	crowds   map[uint64]*crowd
	policies map[string][]keptPolicy
	// parsed has the parsed policies, sorted by name. It is nil until policiesIn fills it. It stays nil if the
	// namespace has no pods on this node.
	parsed []parsedPolicy
	// used and waiting are sums of the efforts (parseEffort) of large policies that are parsed already. used counts
	// the policies in the list parsed, and waiting the policies that aren't in this list yet: see TakeParsed.
	used, waiting float64
}

type keptPolicy struct {
	*networkingv1.NetworkPolicy
	parsed *parsedPolicy
}

// crowd has the pods of a namespace with equal labels. Selectors are compared with crowds instead of single pods, which
// is faster.
type crowd struct {
	*space
	hash   uint64
	mark   uint64 // a random number; see live.print
	next   *crowd // another crowd of the namespace with the same hash
	sample *Pod   // any of the pods, for its labels
	pods   []*pod
	count  [len(conf.Families)]int // number of the pods' addresses that policies use (addressBook.uses), by family
	// matches has the selectors in use (see the type live) that match the crowd, ordered by ID.
	matches []*live
	unswept bool // true if some selectors in matches may no longer be in use
}

var seed = maphash.MakeSeed()

func labelHash(p *Pod) (hash uint64) {
	for k, v := range p.Labels {
		// The hash is of key and value together, so it changes if two labels swap their values.
		hash += maphash.Comparable(seed, [2]string{k, v})
	}
	for _, k := range p.Unknown {
		hash += maphash.String(seed, k) * 17
	}
	return hash
}

func (e *Engine) space(name string) *space {
	s := e.spaces[name]
	if s == nil {
		s = &space{name: name, crowds: map[uint64]*crowd{}, policies: map[string][]keptPolicy{}}
		e.spaces[name] = s
	}
	return s
}

func (e *Engine) setNamespace(name string, n *Namespace) {
	s := e.space(name)
	before := s.object
	if s.object = (Namespace{}); n != nil {
		s.object = *n
	}
	defer e.dropSpace(s)
	if !e.selectors.tellApart(name, before, s.object) {
		return
	}
	for c := range s.each() {
		for _, p := range c.pods {
			for _, a := range p.addresses {
				e.touch(a)
			}
		}
	}
	for c := range s.each() {
		e.rematch(c, e.selectors.matching(c))
	}
}

func (s *space) each() func(func(*crowd) bool) {
	return func(yield func(*crowd) bool) {
		for _, c := range s.crowds {
			for ; c != nil; c = c.next {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// setPolicies replaces the policies of this name. Policies larger than limits.bulk aren't parsed yet: see NextUnparsed.
func (e *Engine) setPolicies(name Name, policies []*networkingv1.NetworkPolicy) {
	s, full := e.space(name.Namespace), name.Namespace+"/"+name.Name
	local := e.isLocal(s.name)
	var problems []ruleset.Problem
	var kept []keptPolicy
	delete(e.unparsed, name)
	for _, np := range policies {
		if kept = append(kept, keptPolicy{NetworkPolicy: np}); bulk(np) > e.compiler.limits.bulk {
			e.unparsed[name] += parseEffort(np)
			continue
		}
		p := parse(np)
		if problems = append(problems, p.problems...); local {
			kept[len(kept)-1].parsed = &p
		}
	}
	e.reports.set(reportOf{policy: name}, problems)
	if s.policies[name.Name] = kept; len(kept) == 0 {
		delete(s.policies, name.Name)
		e.names = e.names.Without(full)
	} else {
		e.names = e.names.With(full, allAudited(policies))
	}
	if local {
		s.parsed, e.touched[s.name] = nil, true
	}
	e.dropSpace(s)
}

func (e *Engine) policiesIn(namespace string) []parsedPolicy {
	s := e.space(namespace)
	if s.parsed != nil {
		return s.parsed
	}
	s.parsed = make([]parsedPolicy, 0, len(s.policies))
	for _, policies := range s.policies {
		for i := range policies {
			np := &policies[i]
			if np.parsed == nil {
				var p parsedPolicy
				if name := (Name{np.Namespace, np.Name}); bulk(np.NetworkPolicy) > e.compiler.limits.bulk {
					p = parseHead(np.NetworkPolicy)
					e.unparsed[name] += parseEffort(np.NetworkPolicy)
				} else {
					p = parse(np.NetworkPolicy)
				}
				np.parsed = &p
			}
			s.parsed = append(s.parsed, *np.parsed)
		}
	}
	slices.SortFunc(s.parsed, func(a, b parsedPolicy) int { return strings.Compare(a.name, b.name) })
	return s.parsed
}

func (e *Engine) forgetPolicies(namespace string) {
	s := e.spaces[namespace]
	if s == nil || e.isLocal(namespace) {
		return
	}
	s.parsed = nil
	for _, policies := range s.policies {
		for i := range policies {
			policies[i].parsed = nil
		}
	}
	e.dropSpace(s)
}

func (e *Engine) joinCrowd(p *pod) {
	s, hash := e.space(p.Namespace), labelHash(p.Pod)
	c := s.crowds[hash]
	for c != nil && (!maps.Equal(c.sample.Labels, p.Labels) || !slices.Equal(c.sample.Unknown, p.Unknown)) {
		c = c.next
	}
	if c == nil {
		c = &crowd{space: s, hash: hash, mark: rand.Uint64(), sample: p.Pod, next: s.crowds[hash]}
		s.crowds[hash] = c
		e.crowds++
		e.rematch(c, e.selectors.matching(c))
	}
	if len(c.pods) == 0 { // the sample may be an old version of this pod
		c.sample = p.Pod
	}
	p.crowd, p.place = c, len(c.pods)
	c.pods = append(c.pods, p)
	e.selectors.countPorts(c, p.Pod, 1)
}

// leaveCrowd removes the pod from its crowd. If the crowd is now empty, settle removes the crowd later.
func (e *Engine) leaveCrowd(p *pod) {
	c := p.crowd
	e.selectors.countPorts(c, p.Pod, -1)
	last := c.pods[len(c.pods)-1]
	c.pods[p.place], last.place = last, p.place
	c.pods[len(c.pods)-1] = nil
	c.pods = c.pods[:len(c.pods)-1]
	if p.crowd = nil; len(c.pods) == 0 {
		e.moving.crowds[c] = true
	} else if c.sample == p.Pod { // another sample, so that the crowd doesn't keep the pod in memory
		c.sample = c.pods[0].Pod
	}
}

func (e *Engine) dropCrowd(c *crowd) {
	e.rematch(c, nil)
	e.crowds--
	before := c.crowds[c.hash]
	if before == c {
		c.crowds[c.hash] = c.next
	}
	for ; before != nil && before != c; before = before.next {
		if before.next == c {
			before.next = c.next
			break
		}
	}
	if c.crowds[c.hash] == nil {
		delete(c.crowds, c.hash)
	}
	e.dropSpace(c.space)
}

func (e *Engine) dropSpace(s *space) {
	if s.object.Name == "" && len(s.crowds)+len(s.policies) == 0 && s.parsed == nil && e.spaces[s.name] == s {
		delete(e.spaces, s.name)
	}
}

func (e *Engine) count(p *pod, a netip.Addr, by int) {
	if !e.addresses.uses(p, a) {
		return
	}
	f := conf.FamilyOf(a)
	p.crowd.count[f] += by
	for _, l := range p.crowd.matches {
		l.count[f] += by
		e.moving.counts[l] = true
	}
	for _, port := range p.Ports {
		for _, l := range e.selectors.ports(port, p.local) {
			l.count[f] += by
			e.moving.counts[l] = true
		}
	}
}
