package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type cluster struct {
	pods        []member
	in          map[string][]int // indexes in pods, by namespace
	endpoints   []localEndpoint
	expected    []*Pod
	shared      map[netip.Addr][]member
	disbelieved []ruleset.Problem
	ambiguous   []ruleset.Problem
}

// member is a pod with the addresses that count. If the pod has an endpoint on this node, these are the endpoint's
// addresses. Otherwise they are the addresses in the pod's status that its Node can assign and that no endpoint of
// this node has.
type member struct {
	Pod
	namespace Namespace
	local     bool // true if the pod is on this node
	addresses []netip.Addr
}

type localEndpoint struct {
	Endpoint
	known bool // true if the source has the pod, or if enforcement is off for the pod
	pods  []*Pod
}

func sameEndpoint(a, b localEndpoint) bool { return a.equal(b.Endpoint) }

func (l localEndpoint) of(f conf.Family) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range l.Addresses {
		if conf.FamilyOf(a.Addr) == f {
			addrs = append(addrs, a.Addr)
		}
	}
	return addrs
}

func (c cluster) attachments() (all []Endpoint) {
	for _, e := range c.endpoints {
		all = append(all, e.Endpoint)
	}
	return all
}

func (policy parsedPolicy) selects(p *Pod) answer {
	if p.Namespace != policy.namespace {
		return no
	}
	return p.matchedBy(policy.pods)
}

func index(state State) cluster {
	namespaces := map[string]Namespace{}
	for _, n := range state.Namespaces {
		namespaces[n.Name] = n
	}
	type name struct{ namespace, name string }
	attached := map[name]bool{}
	for _, e := range state.Endpoints {
		attached[name{e.Pod.Namespace, e.Pod.Name}] = true
	}
	pods := map[name][]Pod{}
	for _, p := range state.Pods {
		if k := (name{p.Namespace, p.Name}); attached[k] {
			pods[k] = append(pods[k], p)
		}
	}
	c := cluster{pods: make([]member, 0, len(state.Pods)), in: make(map[string][]int, len(namespaces))}
	if len(state.Workloads) > 0 {
		state.Pods = slices.Clone(state.Pods)
	}
	for k := range attached {
		var by []Workload
		if pods[k] == nil && len(state.Workloads) > 0 {
			pods[k], by = MadeBy(state.Workloads, k.namespace, k.name)
			state.Pods = append(state.Pods, pods[k]...)
		}
		if len(pods[k]) > 1 {
			c.ambiguous = append(c.ambiguous, ambiguous(pods[k], by))
		}
	}
	taken := map[netip.Addr]bool{}
	addresses := map[name][]netip.Addr{}
	byID := func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) }
	for _, e := range slices.SortedFunc(slices.Values(state.Endpoints), byID) {
		k := name{e.Pod.Namespace, e.Pod.Name}
		l := localEndpoint{Endpoint: e}
		for _, pod := range pods[k] {
			if SameUID(pod.UID, e.Pod.UID) {
				l.pods = append(l.pods, &pod)
			}
		}
		same := len(l.pods) > 0
		l.known = same || e.Enforcement == conf.Off
		c.endpoints = append(c.endpoints, l)
		for _, a := range e.Addresses {
			taken[a.Addr] = true
			if same {
				addresses[k] = append(addresses[k], a.Addr)
			}
		}
	}
	places := newPlaces(state)
	for _, p := range state.Pods {
		m := member{Pod: p, namespace: namespaces[p.Namespace], addresses: addresses[name{p.Namespace, p.Name}]}
		m.local = m.addresses != nil
		if !m.local && !p.Finished && !p.HostNetwork {
			believed, problems := places.believed(p)
			c.disbelieved = append(c.disbelieved, problems...)
			for _, a := range believed {
				// A new pod of this node may have the address, while p is an old pod that is still being deleted.
				if !taken[a] {
					m.addresses = append(m.addresses, a)
				}
			}
		}
		if p.NodeName == state.Node && len(p.Addresses) == 0 && !attached[name{p.Namespace, p.Name}] &&
			!p.HostNetwork && !p.Finished {
			c.expected = append(c.expected, &p)
		}
		if !p.HostNetwork {
			c.in[p.Namespace] = append(c.in[p.Namespace], len(c.pods))
			c.pods = append(c.pods, m)
		}
	}
	c.shared = shared(c.pods)
	return c
}

func shared(pods []member) map[netip.Addr][]member {
	first, by := make(map[netip.Addr]int, len(pods)), map[netip.Addr][]member{}
	for i, p := range pods {
		for _, a := range p.addresses {
			switch j, ok := first[a]; {
			case !ok:
				first[a] = i
			case by[a] == nil && i != j:
				by[a] = []member{pods[j], p}
			case i != j:
				by[a] = append(by[a], p)
			}
		}
	}
	return by
}

func (c cluster) problems() []ruleset.Problem {
	all := slices.Concat(c.disbelieved, c.ambiguous)
	for _, a := range slices.SortedFunc(maps.Keys(c.shared), netip.Addr.Compare) {
		names := make([]string, len(c.shared[a]))
		for i, p := range c.shared[a] {
			names[i] = comment(&p.Pod)
		}
		all = append(all, sharedProblems(a, names)...)
	}
	return all
}

func sharedProblems(a netip.Addr, names []string) (problems []ruleset.Problem) {
	slices.Sort(names)
	if names = slices.Compact(names); len(names) < 2 {
		return nil // all these pods have one name, so the address isn't shared
	}
	for i, name := range names {
		problems = append(problems, ruleset.Problem{
			Object: "Pod " + name, Field: "status.podIPs",
			Message: fmt.Sprintf("%s is also claimed by %s; its packets pass only where all of them are allowed",
				a, others(names, i)),
		})
	}
	return problems
}

func others(names []string, i int) string {
	var some []string
	for j := 0; j < len(names) && len(some) < 3; j++ {
		if j != i {
			some = append(some, names[j])
		}
	}
	said := strings.Join(some, ", ")
	if more := len(names) - 1 - len(some); more > 0 {
		said += fmt.Sprintf(" and %d more", more)
	}
	return said
}

func (c cluster) agreed(means func(member) bool) func(netip.Addr) bool {
	known := map[netip.Addr]bool{}
	return func(a netip.Addr) bool {
		pods := c.shared[a]
		if len(pods) == 0 {
			return true
		}
		yes, ok := known[a]
		if !ok {
			yes = !slices.ContainsFunc(pods, func(p member) bool { return !means(p) })
			known[a] = yes
		}
		return yes
	}
}

// SameUID reports whether the two UIDs can belong to the same pod. An empty UID matches every UID.
func SameUID(source, endpoint string) bool {
	return source == "" || endpoint == "" || source == endpoint
}

func (c cluster) each(s selector, f func(p *member)) {
	for _, members := range c.in {
		if first := c.pods[members[0]]; !s.matchesNamespace(first.Namespace, first.namespace) {
			continue
		}
		for _, i := range members {
			if p := &c.pods[i]; p.matchedBy(s.pods) == yes {
				f(p)
			}
		}
	}
}

func (c cluster) effort(*supply) float64 { return 0 }

func (c cluster) look(*supply, int) (looked int, found bool) { return 0, true }

func (c cluster) countSelected(s selector, f conf.Family) (n int) {
	c.each(s, func(p *member) { n += p.countOf(f) })
	return n
}

func (m *member) countOf(f conf.Family) (n int) {
	for _, a := range m.addresses {
		if conf.FamilyOf(a) == f {
			n++
		}
	}
	return n
}

func (c cluster) selected(s selector, f conf.Family) ruleset.Entries {
	var entries []ruleset.Entry
	agreed := c.agreed(func(p member) bool { return s.matches(p.namespace, &p.Pod) })
	c.each(s, func(p *member) {
		for _, a := range p.addresses {
			if conf.FamilyOf(a) == f && agreed(a) {
				entries = append(entries, entry(hostPrefix(a), p.Namespace+"/"+p.Name))
			}
		}
	})
	return ruleset.EntriesOf(entries...)
}

func (c cluster) eachNamed(named namedPort, f func(p *member, port NamedPort)) {
	for i := range c.pods {
		p := &c.pods[i]
		for _, port := range p.Ports {
			if port.Name == named.name && port.Proto == named.proto && (p.local || !named.local) {
				f(p, port)
			}
		}
	}
}

func (c cluster) countNamed(named namedPort, f conf.Family) (n int) {
	c.eachNamed(named, func(p *member, _ NamedPort) { n += p.countOf(f) })
	return n
}

func (c cluster) named(named namedPort, f conf.Family) ruleset.Entries {
	var entries []ruleset.Entry
	agreed := map[NamedPort]func(netip.Addr) bool{}
	c.eachNamed(named, func(p *member, port NamedPort) {
		if agreed[port] == nil {
			agreed[port] = c.agreed(func(p member) bool { return slices.Contains(p.Ports, port) })
		}
		for _, a := range p.addresses {
			if conf.FamilyOf(a) == f && agreed[port](a) {
				entries = append(entries, namedEntry(a, port, p.Namespace+"/"+p.Name))
			}
		}
	})
	return ruleset.EntriesOf(entries...)
}

func namedEntry(a netip.Addr, port NamedPort, comment string) ruleset.Entry {
	e := entry(hostPrefix(a), comment)
	e.Proto, e.Port = port.Proto, port.Number
	return e
}
